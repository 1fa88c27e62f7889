"""What the report says: every record accounted for, bad ones quarantined, what is longer than a row."""

import gzip
import itertools
import json
from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from common.files import read_checksummed_json
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups, prepare_source
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from model.tokenizer import load_tokenizer
from tests.data.prepare.conftest import document, documents


def test_every_record_is_accounted_for(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    report = prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    assert report["records"] == 219
    assert report["quarantined"] == 1
    assert report["dropped"] == {"exact_duplicate": 10, "near_duplicate": 5, "too_short": 3}
    assert report["kept"] == 200
    assert sorted(documents(tmp_path / "out")) == sorted(document(seed) for seed in range(200))
    shards = ShardSet.open(tmp_path / "out")
    splits = shards.manifest["splits"]
    for split in ("train", "validation"):
        assert splits[split]["sequences"] == len(shards.load_split(split))
        assert (
            splits[split]["tokens"]
            == shards.load_split(split).num_tokens
            == shards.load_split(split).lengths().sum()
        )
    assert sum(split["characters"] for split in splits.values()) == report["characters"]
    assert sum(split["tokens"] for split in splits.values()) == report["tokens"]
    assert shards.manifest["tokenizer"]["fingerprint"] == load_tokenizer(tokenizer).fingerprint
    (bad,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad) | {"reason": ""} == {"file": str(corpus), "line": 219, "reason": ""}
    assert read_checksummed_json(tmp_path / "out" / "report.json") == report
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_real_corpora_of_different_shapes_mix_into_one_set(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "pretrain"
    groups = [
        SourceGroup("mnbvc", (str(folder / "mnbvc_general.jsonl.gz"),)),
        SourceGroup("mnbvc_qa", (str(folder / "mnbvc_qa.jsonl.gz"),)),
        SourceGroup("wiki_zh_2019", (str(folder / "wiki_zh_2019"),)),
    ]
    model = shared / "tokenizer" / "llama-chinese-65k.model"
    report = prepare_groups(groups, tmp_path / "out", model, PrepareOptions(limit=300, workers=1))
    assert [counts["records"] for counts in report["sources"].values()] == [300, 300, 64]
    assert report["kept"] > 600
    with gzip.open(folder / "mnbvc_qa.jsonl.gz") as file:
        rows = [orjson.loads(line) for line in itertools.islice(file, 20)]
    found = set(documents(tmp_path / "out"))
    assert sum(f"{row['问'].strip()}\n{row['答'].strip()}" in found for row in rows) >= 18


def test_too_many_bad_records_fail_in_one_line_and_resume_is_cheap(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
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
    """A user's text that is too short for anything, with neither the file's name nor the length that would do."""
    (tmp_path / "a.jsonl").write_bytes(data)
    with pytest.raises(UserError, match=rf"a\.jsonl: .*{reason}"):
        prepare_source(
            "jsonl", [str(tmp_path / "a.jsonl")], tmp_path / "out", tokenizer, PrepareOptions()
        )


def test_conversation_fitting_a_row_gives_no_length_warning(root: Path, tmp_path: Path) -> None:
    """A report of conversations cut that training does not cut: a row of 512 positions holds 513 ids."""
    from model.chat_template.template import Template

    small = load_tokenizer(root / "assets/tokenizer")
    filler, size = "", 0
    while size < 514:
        filler += "的水山天人"[len(filler) % 5]
        size = len(Template().encode(small, [("好", filler)])[0])
        if size in (513, 514):
            row = {
                "messages": [
                    {"role": "user", "content": "好"},
                    {"role": "assistant", "content": filler},
                ]
            }
            (tmp_path / f"{size}.jsonl").write_bytes(orjson.dumps(row) + b"\n")
    for size, longer in ((513, 0), (514, 1)):
        group = SourceGroup("openai", (str(tmp_path / f"{size}.jsonl"),))
        report = prepare_groups(
            [group], tmp_path / str(size), root / "assets/tokenizer", PrepareOptions(workers=1)
        )
        assert report["tokens"] == size and report["longer_than"]["512"] == longer
