"""Bad data, end to end: every record of it comes out of preparation, is unused on purpose, or is quarantined by name; and
what evaluation and tokenizer training make of it.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import UserError
from data.readers.source_args import Group
from data.prepare.pipeline import PrepareOptions, prepare_groups
from data.records import BadRecord, Document
from data.shards import ShardSet
from data.sources import SOURCES
from data.tokenizer.texts import STRINGS
from evaluate.predictions import read_predictions
from evaluate.usable_records import read_records
from tests.helpers.native_corpora import QUICK, ROWS, VALUES, dumped, framed, pseudo_xml, said, split, spoilt


def prepared(tmp_path: Path, groups: list[Group], root: Path) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """What preparation makes of inputs: its report, what it quarantined, and the shard set."""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    report = prepare_groups(groups, out, root / "assets/tokenizer", PrepareOptions(workers=1, quarantine_share=1))
    bad = [json.loads(line) for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert report["records"] == report["kept"] + sum(report["dropped"].values()) + report["quarantined"]
    assert report["quarantined"] == len(bad)
    assert all(row["file"] and row["line"] >= 1 and row["reason"] for row in bad)
    return report, bad, out


@pytest.mark.parametrize("name", ROWS)
def test_preparation_accounts_for_every_record_of_every_source(tmp_path: Path, root: Path, name: str) -> None:
    faults = list(spoilt(name).values())
    rows = [piece for number, fault in enumerate(faults) for piece in (dumped(ROWS[name](number)), fault)]
    path = tmp_path / "file.json"
    path.write_bytes(framed(name, rows))
    report, bad, _ = prepared(tmp_path, [Group(name, (str(path),))], root)
    assert report["records"] == len(rows) and report["kept"] + report["dropped"].get("exact_duplicate", 0) == len(faults)
    assert [(row["file"], row["line"]) for row in bad] == [(str(path), 2 * number + 2) for number in range(len(faults))]


def test_unused_records_are_counted_beside_bad_and_good_ones(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "PART_III.txt"
    low = pseudo_xml(7).replace(b">5<", b">1<")
    path.write_bytes(pseudo_xml(0) + low + b"stray\n" + pseudo_xml(1) + pseudo_xml(2).replace(b">5<", b">x<") + b"<doc id=9>\n")
    report, bad, _ = prepared(tmp_path, [Group("lcsts", (str(path),))], root)
    assert (report["records"], report["kept"], report["dropped"]) == (6, 2, {"label below 3": 1})
    assert [row["line"] for row in bad] == [19, 29, 38]


def test_marks_in_real_text_neither_stop_cleaning_nor_stay(tmp_path: Path, root: Path) -> None:
    """A NUL that ends the text for a C library, a byte order mark in the middle of a document, half an emoji."""
    marked = f"\ufeff{said(1)}\0{said(2)}\ufeff\u200b\r\n{said(3)}"
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"".join(dumped({"text": text}) + b"\n" for text in (marked, said(4), said(5))))
    (tmp_path / "text.txt").write_bytes(f"\ufeff{said(6)}\0{said(7)}\r\n".encode())
    _, _, out = prepared(tmp_path, [Group("jsonl", (str(path),)), Group("text", (str(tmp_path / "text.txt"),))], root)
    assert {f"{said(1)}{said(2)}\n{said(3)}", said(4), said(5), said(6) + said(7)} == set(_texts(out))


def test_conversations_keep_every_character_they_had(tmp_path: Path, root: Path) -> None:
    """They are not cleaned: what the tokenizer is given must come back, NUL and byte order mark included."""
    answer = f"{said(1)}\0\ufeff{said(2)}\r\n\U0001f468\u200d\U0001f469\n\x1b"
    rows = [{"instruction": said(9), "output": answer + "完"}, {"instruction": said(8), "output": said(3)}]
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"".join(map(lambda row: dumped(row) + b"\n", rows)))
    _, _, out = prepared(tmp_path, [Group("belle-0.5m", (str(path),))], root)
    assert any(f"助手：{answer}完" in text for text in _texts(out))


def _texts(out: Path) -> list[str]:
    shards = ShardSet.open(out, checksums=True)
    tokenizer, splits = shards.tokenizer(), [shards.split(name) for name in ("train", "validation")]
    return [tokenizer.decode(each.tokens(index).tolist()) for each in splits for index in range(len(each))]


def test_file_names_that_are_no_text_are_prepared_and_quarantined(tmp_path: Path, root: Path) -> None:
    """Names from another system, in GBK, are bytes that have no UTF-8."""
    path = os.path.join(os.fsencode(tmp_path), "语料.jsonl".encode("gbk"))
    with open(path, "wb") as file:
        file.write(dumped(ROWS["jsonl"](0)) + b"\n" + dumped(ROWS["jsonl"](1)) + b"\n{\n")
    report, bad, _ = prepared(tmp_path, [Group("jsonl", (os.fsdecode(path),))], root)
    assert (report["kept"], len(bad), bad[0]["line"]) == (2, 1, 3)


def test_real_malformed_files_are_read_by_every_source(shared: Path) -> None:
    """By the right source and by any wrong one: as many records and bad ones as there are raw records."""
    for path in sorted((shared / "data" / "malformed").iterdir()):
        for name, source in SOURCES.items():
            good, bad = split(name, path)
            assert len(good) + len(bad) == sum(1 for _ in source.read(path, None)) > 0, name


@pytest.mark.parametrize(("name", "file", "kept"), [
    ("alpaca", "alpaca_invalid.json", True), ("jsonl", "dev_sft_sharegpt.csv", False),
])
def test_real_malformed_files_are_prepared_or_refused(
    tmp_path: Path, root: Path, shared: Path, name: str, file: str, kept: bool
) -> None:
    path = str(shared / "data" / "malformed" / file)
    if kept:
        report, bad, _ = prepared(tmp_path, [Group(name, (path,))], root)
        assert report["kept"] > 2000 and len(bad) == 3 and bad[-1]["reason"] == "there is a comma and no element"
    else:
        with pytest.raises(UserError, match=r"none of [\d,]+ records is left to train on \(all quarantined\)"):
            prepared(tmp_path, [Group(name, (path,))], root)


# What evaluation and tokenizer training read


def test_evaluation_says_what_it_leaves_out(write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = write(b"\xff\n" + dumped(ROWS["redgpt"](0)) + b"\n{\n")
    assert len(read_records("redgpt", [str(path)], ("conversations",), None)) == 1
    assert f"left out, unreadable: 2 records, the first {path} line 1" in capsys.readouterr().out


@given(data=st.lists(st.binary(max_size=20) | VALUES.map(lambda value: json.dumps(value).encode()) | st.sampled_from([
    b'{"prediction": "\\ud800", "reference": "a"}', b'{"prediction": "a", "reference": "b"}', b"[" * 20_000,
    b'{"prediction": "a", "reference": 1}', b'{"prediction": "a", "reference": "b", "x": 1%s}' % (b"0" * 5000)]), max_size=4))
@example(data=[b'{"prediction": "\\ud800", "reference": "a"}'])
@example(data=[b"[" * 100_000])
@QUICK
def test_predictions_are_rows_that_can_be_printed_or_one_line(write: Callable[..., Path], data: list[bytes]) -> None:
    """Half a character in another program's predictions, found when an hour of scores is printed."""
    path = write(b"\n".join(data))
    try:
        rows = read_predictions(path, ("prediction", "reference"))
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        json.dumps(rows, ensure_ascii=False).encode()


def test_a_tokenizer_can_be_trained_on_any_json(write: Callable[..., Path]) -> None:
    """Nested a thousand deep, which orjson reads and a recursive walk does not."""
    for depth in (10, 990, 1000, 1020, 5000):
        found = list(STRINGS.open(write(b'{"a": ' + b"[" * depth + '"字"'.encode() + b"]" * depth + b"}\n")))
        assert len(found) == 1 and isinstance(found[0], Document | BadRecord)
