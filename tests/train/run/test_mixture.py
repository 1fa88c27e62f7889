"""Opening the shard sets of a mixture."""

from pathlib import Path

import orjson
import pytest

from data.corpora import sample
from tests.helpers.native_corpora import ROW_BUILDERS
from train.run.mixture import open_named_set


@pytest.mark.slow
def test_records_left_out_are_named_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents training on a part of a file without a word, the second time too."""
    tokenizer = sample.SMALL_TOKENIZER.resolve()
    rows = [ROW_BUILDERS["sharegpt"](number) for number in range(4)]
    rows += [{**rows[0], "tools": "[{}]", "notes": "备注"}, {**rows[1], "images": ["a.png"]}]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        shards = open_named_set(str(path), tokenizer)
        lines = capsys.readouterr().out.splitlines()
        assert lines == [
            f"{shards.folder}: 2 of 6 records are left out: 1 unsupported field images, "
            "1 unsupported field tools"
        ]
