"""Bad records: a corrupt record is quarantined with a reason, and its neighbors are kept."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.readers import files
from data.records import Record, SkippedRecord
from data.sources import SOURCES
from tests.helpers.native_corpora import (
    JSON_KEYS,
    JSON_VALUES,
    QUICK_SETTINGS,
    ROW_BUILDERS,
    Row,
    corrupt_row_variants,
    join_rows,
    parse_rows,
    read_good_and_bad,
    to_json_bytes,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROW_BUILDERS)
def test_bad_record_is_quarantined_and_others_are_kept(
    write: Callable[..., Path], name: str
) -> None:
    """Prevents crashes, silently dropped records, lost neighbors and unprintable reasons."""
    rows = [ROW_BUILDERS[name](number) for number in range(5)]
    expected = parse_rows(name, [rows[0], rows[1], rows[3], rows[4]])
    for kind, data in corrupt_row_variants(name).items():
        good, bad = read_good_and_bad(
            name,
            write(
                join_rows(
                    name,
                    [
                        to_json_bytes(rows[0]),
                        to_json_bytes(rows[1]),
                        data,
                        *map(to_json_bytes, rows[3:]),
                    ],
                )
            ),
        )
        assert good == expected, kind
        assert [record.line for record in bad] == [3], kind


@pytest.mark.parametrize("name", ROW_BUILDERS)
def test_bom_and_crlf_lose_no_records(write: Callable[..., Path], name: str) -> None:
    """Prevents a byte order mark or CRLF from spoiling the first record or every text."""
    rows = [ROW_BUILDERS[name](number) for number in range(4)]
    expected, data = parse_rows(name, rows), join_rows(name, [to_json_bytes(row) for row in rows])
    for kind in (
        b"\xef\xbb\xbf" + data,
        data.replace(b"\n", b"\r\n"),
        b"\n \r\n" + data + b"\n\n",
        gzip.compress(data),
    ):
        assert read_good_and_bad(name, write(kind)) == (expected, []), kind[:40]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROW_BUILDERS)
def test_ten_megabyte_record_is_accepted(write: Callable[..., Path], name: str) -> None:
    row = ROW_BUILDERS[name](0)
    big = orjson.loads(to_json_bytes(row).decode().replace("风", "风" * 3_500_000, 1))
    good, bad = read_good_and_bad(
        name,
        write(
            join_rows(
                name,
                [
                    to_json_bytes(ROW_BUILDERS[name](1)),
                    to_json_bytes(big),
                    to_json_bytes(ROW_BUILDERS[name](2)),
                ],
            )
        ),
    )
    assert (len(good), bad) == (3, [])
    assert "风" * 3_500_000 in repr(good[1]) or name in ("wikipedia", "wiki_zh_2019")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("redgpt", {"reference": "资料", "dialogue": "Human:只有问题"}),
        ("redgpt", {"reference": "资料", "dialogue": ""}),
        ("naturalconv", {"content": []}),
        ("naturalconv", {"content": ["", ""]}),
        ("belle-0.8m", {"instruction": "Human:问\nAssistant:答", "output": "答"}),
        ("belle-0.8m", {"instruction": "Human:\nAssistant:", "output": "答"}),
        ("deepctrl", {"instruction": "问", "output": "答", "history": [["问"]]}),
        ("deepctrl", {"instruction": "问", "output": "答", "history": "问"}),
        ("alpaca", {"instruction": "", "input": "", "output": "答"}),
        ("sharegpt", {"conversations": []}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "问"}]}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "问"}, {"from": "bing", "value": "答"}]},
        ),
        ("sharegpt", {"conversations": [{"from": ["human"], "value": "问"}]}),
        ("openai", {"messages": [{"role": "user", "content": "问"}]}),
        (
            "openai",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "odd"}]},
                    {"role": "assistant", "content": "答"},
                ]
            },
        ),
        ("openai", {"messages": "问"}),
        ("csl", {"content": "短", "summary": "比文章还要长的标题"}),
        ("mnbvc", {"段落": {"行号": [1], "内容": ["甲", "乙"]}}),
        ("mnbvc", {"段落": {"行号": [1, 2], "内容": ["甲"]}}),
        ("mnbvc_qa", {"问": "问", "答": "答", "元数据": {"回答明细": ["明细"]}}),
    ],
)
def test_invalid_conversation_is_rejected_whole(
    write: Callable[..., Path], name: str, row: Row
) -> None:
    """Prevents questions without answers, empty conversations and silently cut columns."""
    good, bad = read_good_and_bad(name, write(join_rows(name, [to_json_bytes(row)])))
    assert not good and len(bad) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
@given(value=st.dictionaries(st.sampled_from(JSON_KEYS), JSON_VALUES, max_size=5) | JSON_VALUES)
@QUICK_SETTINGS
def test_any_json_gives_a_record_or_a_reason(name: str, value: object) -> None:
    """Prevents a crash for any type under any key of any source."""
    raw = files.RawRecord("file", 1, json.dumps(value).encode())
    record = SOURCES[name].try_parse(raw)
    assert isinstance(record, Record | SkippedRecord) or record.reason.isprintable()
