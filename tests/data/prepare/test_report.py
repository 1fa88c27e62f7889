"""The report of a preparation accounts for every record."""

import gzip
import itertools
import json
from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from common.files import read_checksummed_json
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.chat_template.template import Template
from model.tokenizer import load_tokenizer
from tests.data.prepare.conftest import document, documents
from tests.helpers.prepare import prepare_source


@pytest.mark.slow
def test_every_record_is_accounted_for(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Prevents records that are lost without a count, and counts that do not fit the shards."""
    report = prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    assert report["records"] == 219
    assert report["quarantined"] == 1
    assert report["dropped"] == {"exact_duplicate": 10, "near_duplicate": 5, "too_short": 3}
    assert report["kept"] == 200
    assert sorted(documents(tmp_path / "out")) == sorted(document(seed) for seed in range(200))
    shards = ShardSet.open(tmp_path / "out")
    splits = shards.manifest["splits"]
    for split in ("train", "validation"):
        sequences = shards.load_text(split)
        assert splits[split]["sequences"] == len(sequences)
        assert splits[split]["tokens"] == sequences.num_tokens == sequences.lengths().sum()
    assert sum(split["characters"] for split in splits.values()) == report["characters"]
    assert sum(split["tokens"] for split in splits.values()) == report["tokens"]
    assert shards.manifest["tokenizer"]["fingerprint"] == load_tokenizer(tokenizer).fingerprint
    (bad,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad) | {"reason": ""} == {"file": str(corpus), "line": 219, "reason": ""}
    assert read_checksummed_json(tmp_path / "out" / "report.json") == report
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_real_corpora_of_different_shapes_mix_into_one_set(shared: Path, tmp_path: Path) -> None:
    """Prevents a mix of sources that loses one of them, or changes its texts."""
    folder = shared / "data" / "pretrain"
    groups = [
        SourceGroup("mnbvc", (str(folder / "mnbvc_general.jsonl.gz"),)),
        SourceGroup("mnbvc_qa", (str(folder / "mnbvc_qa.jsonl.gz"),)),
        SourceGroup("wiki_zh_2019", (str(folder / "wiki_zh_2019"),)),
    ]
    model = shared / "tokenizer" / "llama-chinese-65k.model"
    report = prepare_groups(groups, tmp_path / "out", model, PrepareOptions(limit=60, workers=1))
    assert [counts["records"] for counts in report["sources"].values()] == [60, 60, 60]
    assert report["kept"] > 150
    with gzip.open(folder / "mnbvc_qa.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in itertools.islice(file, 20)]
    texts = set(documents(tmp_path / "out"))
    assert sum(f"{row['问'].strip()}\n{row['答'].strip()}" in texts for row in rows) >= 18


@pytest.mark.slow
def test_too_many_bad_records_fail_in_one_line_and_resume_is_cheap(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Prevents a corpus read by the wrong source, and an error without the first bad line."""
    corpus.write_bytes(corpus.read_bytes() + b"[1]\n[2]\n")
    with pytest.raises(
        UserError, match=r"3 of 221 records.*1\.36%.*corpus\.jsonl line 219: not valid JSON"
    ) as caught:
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    report = prepare_source(
        "jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions(quarantine_share=0.02)
    )
    assert report["quarantined"] == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\n\n", "not one record"),
        (b'{"text": "a"}\n', r"none of 1 .*\(too_short 1\).* at least 20 char"),
    ],
)
def test_empty_training_set_gives_clear_error(
    tokenizer: Path, tmp_path: Path, data: bytes, reason: str
) -> None:
    """Prevents an error about short text without the file's name or the length required."""
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.jsonl: .*{reason}"):
        prepare_source(
            "jsonl", [str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer, PrepareOptions()
        )


@pytest.mark.slow
def test_conversation_fitting_a_row_gives_no_length_warning(root: Path, tmp_path: Path) -> None:
    """Prevents a warning about conversations that fit: a row of 512 positions holds 513 ids."""
    folder = root / "assets/tokenizer"
    tokenizer = load_tokenizer(folder)
    answer = ""
    files = {}
    while 514 not in files:
        answer += "的水山天人"[len(answer) % 5]
        num_ids = len(Template().encode(tokenizer, [("好", answer)]).ids)
        messages = [
            {"role": "user", "content": "好"},
            {"role": "assistant", "content": answer},
        ]
        files[num_ids] = tmp_path / f"{num_ids}.jsonl"
        files[num_ids].write_bytes(orjson.dumps({"messages": messages}) + b"\n")
    for num_ids, num_longer in ((513, 0), (514, 1)):
        group = SourceGroup("openai", (str(files[num_ids]),))
        out = tmp_path / str(num_ids)
        report = prepare_groups([group], out, folder, PrepareOptions(workers=1))
        assert report["tokens"] == num_ids and report["longer_than"]["512"] == num_longer
