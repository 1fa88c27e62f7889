"""Bad data, end to end: each record is prepared, skipped on purpose, or quarantined by name.

Also the readers of evaluation and of tokenizer training.
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
from data.kinds import conversations
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.records import BadRecord, Document
from data.sources import SOURCES
from data.tokenizer.texts import STRINGS_SOURCE
from evaluate.input_records import read_usable_records
from evaluate.predictions import read_predictions
from model.tokenizer import load_tokenizer
from tests.helpers.native_corpora import (
    JSON_VALUES,
    QUICK_SETTINGS,
    ROW_BUILDERS,
    corrupt_row_variants,
    join_rows,
    pseudo_xml_document,
    read_good_and_bad,
    to_json_bytes,
    unique_sentence,
)
from tests.helpers.prepare import encode_split


def prepared(
    tmp_path: Path, groups: list[SourceGroup], root: Path
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """Prepare inputs; return the report, the quarantine and the folder of the shard set."""
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    report = prepare_groups(
        groups,
        out,
        root / "assets/tokenizer",
        PrepareOptions(workers=1, quarantine_share=1, validation=0),
    )
    bad = [
        json.loads(line)
        for line in (out / "quarantine.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert (
        report["records"]
        == report["kept"] + sum(report["dropped"].values()) + report["quarantined"]
    )
    assert report["quarantined"] == len(bad)
    assert all(row["file"] and row["line"] >= 1 and row["reason"] for row in bad)
    return report, bad, out


@pytest.mark.slow
@pytest.mark.parametrize("name", ROW_BUILDERS)
def test_preparation_accounts_for_every_record_of_every_source(
    tmp_path: Path, root: Path, name: str
) -> None:
    faults = list(corrupt_row_variants(name).values())
    rows = [
        piece
        for number, fault in enumerate(faults)
        for piece in (to_json_bytes(ROW_BUILDERS[name](number)), fault)
    ]
    path = tmp_path / "file.json"
    path.write_bytes(join_rows(name, rows))
    report, bad, _ = prepared(tmp_path, [SourceGroup(name, (str(path),))], root)
    assert report["records"] == len(rows) and report["kept"] + report["dropped"].get(
        "exact_duplicate", 0
    ) == len(faults)
    assert [(row["file"], row["line"]) for row in bad] == [
        (str(path), 2 * number + 2) for number in range(len(faults))
    ]


@pytest.mark.slow
def test_unused_records_are_counted_separately(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "PART_III.txt"
    low = pseudo_xml_document(7).replace(b">5<", b">1<")
    path.write_bytes(
        pseudo_xml_document(0)
        + low
        + b"stray\n"
        + pseudo_xml_document(1)
        + pseudo_xml_document(2).replace(b">5<", b">x<")
        + b"<doc id=9>\n"
    )
    report, bad, _ = prepared(tmp_path, [SourceGroup("lcsts", (str(path),))], root)
    assert (report["records"], report["kept"], report["dropped"]) == (6, 2, {"label below 3": 1})
    assert [row["line"] for row in bad] == [19, 29, 38]


@pytest.mark.slow
def test_control_characters_in_real_text_are_removed(tmp_path: Path, root: Path) -> None:
    """Prevents NULs, byte order marks inside a document and half emoji in the training text."""
    marked = f"\ufeff{unique_sentence(1)}\0{unique_sentence(2)}\ufeff\u200b\r\n{unique_sentence(3)}"
    path = tmp_path / "file.jsonl"
    path.write_bytes(
        b"".join(
            to_json_bytes({"text": text}) + b"\n"
            for text in (marked, unique_sentence(4), unique_sentence(5))
        )
    )
    (tmp_path / "text.txt").write_bytes(
        f"\ufeff{unique_sentence(6)}\0{unique_sentence(7)}\r\n".encode()
    )
    _, _, out = prepared(
        tmp_path,
        [SourceGroup("jsonl", (str(path),)), SourceGroup("text", (str(tmp_path / "text.txt"),))],
        root,
    )
    assert {
        f"{unique_sentence(1)}{unique_sentence(2)}\n{unique_sentence(3)}",
        unique_sentence(4),
        unique_sentence(5),
        unique_sentence(6) + unique_sentence(7),
    } == set(_texts(out))


@pytest.mark.slow
def test_conversations_lose_no_characters(tmp_path: Path, root: Path) -> None:
    """Prevents cleaning of conversations: NULs and byte order marks must round-trip."""
    answer = f"{unique_sentence(1)}\0\ufeff{unique_sentence(2)}\r\n\U0001f468\u200d\U0001f469\n\x1b"
    rows = [
        {"instruction": unique_sentence(9), "output": answer + "完"},
        {"instruction": unique_sentence(8), "output": unique_sentence(3)},
    ]
    path = tmp_path / "file.jsonl"
    path.write_bytes(b"".join(map(lambda row: to_json_bytes(row) + b"\n", rows)))
    _, _, out = prepared(tmp_path, [SourceGroup("belle-0.5m", (str(path),))], root)
    assert any(f"助手：{answer}完" in text for text in _texts(out))


def _texts(out: Path) -> list[str]:
    tokenizer = load_tokenizer(out)
    ids = [*encode_split(out, "train"), *encode_split(out, "validation")]
    return [tokenizer.decode(each) for each in ids]


@pytest.mark.slow
def test_non_utf8_file_names_are_prepared_and_quarantined(tmp_path: Path, root: Path) -> None:
    """Prevents a crash for file names in GBK, which are not valid UTF-8."""
    path = os.path.join(os.fsencode(tmp_path), "语料.jsonl".encode("gbk"))
    with open(path, "wb") as file:
        file.write(
            to_json_bytes(ROW_BUILDERS["jsonl"](0))
            + b"\n"
            + to_json_bytes(ROW_BUILDERS["jsonl"](1))
            + b"\n{\n"
        )
    report, bad, _ = prepared(tmp_path, [SourceGroup("jsonl", (os.fsdecode(path),))], root)
    assert (report["kept"], len(bad), bad[0]["line"]) == (2, 1, 3)


@pytest.mark.slow
def test_real_malformed_files_are_read_by_every_source(
    shared: Path, write: Callable[..., Path]
) -> None:
    """Prevents lost records, also where a file is read by the wrong source."""
    for real in sorted((shared / "data" / "malformed").iterdir()):
        # The ends of a file, which hold all its faults but for those of the two cuts.
        data = real.read_bytes()
        path = write(data[:150_000] + data[-50_000:], real.name)
        for name, source in SOURCES.items():
            good, bad = read_good_and_bad(name, path)
            assert len(good) + len(bad) == sum(1 for _ in source.read(path, None)) > 0, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "is_prepared"),
    [
        ("alpaca", "alpaca_invalid.json", True),
        ("jsonl", "dev_sft_sharegpt.csv", False),
    ],
)
def test_real_malformed_files_are_prepared_or_refused(
    tmp_path: Path, root: Path, shared: Path, name: str, file: str, is_prepared: bool
) -> None:
    path = str(shared / "data" / "malformed" / file)
    if is_prepared:
        report, bad, _ = prepared(tmp_path, [SourceGroup(name, (path,))], root)
        assert (
            report["kept"] > 2000
            and len(bad) == 3
            and bad[-1]["reason"] == "there is a comma and no element"
        )
    else:
        with pytest.raises(
            UserError, match=r"none of [\d,]+ records is left to train on \(all quarantined\)"
        ):
            prepared(tmp_path, [SourceGroup(name, (path,))], root)


# What evaluation and tokenizer training read


def test_evaluation_reports_skipped_records(
    write: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(b"\xff\n" + to_json_bytes(ROW_BUILDERS["redgpt"](0)) + b"\n{\n")
    assert len(read_usable_records("redgpt", [str(path)], conversations.KIND, None)) == 1
    assert f"left out, unreadable: 2 records, the first {path} line 1" in capsys.readouterr().out


@pytest.mark.slow
@given(
    data=st.lists(
        st.binary(max_size=20)
        | JSON_VALUES.map(lambda value: json.dumps(value).encode())
        | st.sampled_from(
            [
                b'{"prediction": "\\ud800", "reference": "a"}',
                b'{"prediction": "a", "reference": "b"}',
                b"[" * 20_000,
                b'{"prediction": "a", "reference": 1}',
                b'{"prediction": "a", "reference": "b", "x": 1%s}' % (b"0" * 5000),
            ]
        ),
        max_size=4,
    )
)
@example(data=[b'{"prediction": "\\ud800", "reference": "a"}'])
@example(data=[b"[" * 100_000])
@QUICK_SETTINGS
def test_predictions_are_printable_or_give_one_line_error(
    write: Callable[..., Path], data: list[bytes]
) -> None:
    """Prevents half a character in predictions from failing only when scores are printed."""
    path = write(b"\n".join(data))
    try:
        rows = read_predictions(path, ("prediction", "reference"))
    except UserError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
    else:
        json.dumps(rows, ensure_ascii=False).encode()


def test_a_tokenizer_can_be_trained_on_any_json(write: Callable[..., Path]) -> None:
    """Prevents a RecursionError for deep nesting, which orjson reads."""
    for depth in (10, 990, 1000, 1020, 5000):
        records = list(
            STRINGS_SOURCE.iter_records(
                write(b'{"a": ' + b"[" * depth + '"字"'.encode() + b"]" * depth + b"}\n")
            )
        )
        assert len(records) == 1 and isinstance(records[0], Document | BadRecord)
