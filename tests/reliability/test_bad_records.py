"""Bad records: one that is spoilt in whatever way is quarantined by name, and costs nothing of what stands beside it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.readers import files
from data.records import Conversation, Document, Summary, Unused
from data.sources import SOURCES
from tests.helpers.native_corpora import KEYS, QUICK, ROWS, VALUES, Row, dumped, framed, sound, split, spoilt


@pytest.mark.parametrize("name", ROWS)
def test_a_spoilt_record_is_quarantined_in_its_place_and_the_others_come_out(write: Callable[..., Path], name: str) -> None:
    """A crash, a record that vanishes, or a fault that costs its neighbours; a reason of a megabyte, or one that moves the
    cursor of the terminal that shows it."""
    rows = [ROWS[name](number) for number in range(5)]
    wanted = sound(name, [rows[0], rows[1], rows[3], rows[4]])
    for kind, data in spoilt(name).items():
        good, bad = split(name, write(framed(name, [dumped(rows[0]), dumped(rows[1]), data, *map(dumped, rows[3:])])))
        assert good == wanted, kind
        assert [record.line for record in bad] == [3], kind


@pytest.mark.parametrize("name", ROWS)
def test_marks_and_line_ends_of_other_systems_cost_nothing(write: Callable[..., Path], name: str) -> None:
    """A byte order mark or CRLF that makes the first record bad or hangs on every text."""
    rows = [ROWS[name](number) for number in range(4)]
    wanted, data = sound(name, rows), framed(name, [dumped(row) for row in rows])
    for kind in (b"\xef\xbb\xbf" + data, data.replace(b"\n", b"\r\n"), b"\n \r\n" + data + b"\n\n", gzip.compress(data)):
        assert split(name, write(kind)) == (wanted, []), kind[:40]


@pytest.mark.parametrize("name", ROWS)
def test_a_record_of_ten_megabytes_is_a_record(write: Callable[..., Path], name: str) -> None:
    row = ROWS[name](0)
    big = orjson.loads(dumped(row).decode().replace("风", "风" * 3_500_000, 1))
    good, bad = split(name, write(framed(name, [dumped(ROWS[name](1)), dumped(big), dumped(ROWS[name](2))])))
    assert (len(good), bad) == (3, [])
    assert "风" * 3_500_000 in repr(good[1]) or name in ("wikipedia", "wiki_zh_2019")


@pytest.mark.parametrize(("name", "row"), [
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
    ("sharegpt", {"conversations": [{"from": "human", "value": "问"}, {"from": "tool", "value": "答"}]}),
    ("sharegpt", {"conversations": [{"from": ["human"], "value": "问"}]}),
    ("openai", {"messages": [{"role": "user", "content": "问"}]}),
    ("openai", {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "答"}]}),
    ("openai", {"messages": "问"}),
    ("csl", {"content": "短", "summary": "比文章还要长的标题"}),
    ("mnbvc", {"段落": {"行号": [1], "内容": ["甲", "乙"]}}),
    ("mnbvc", {"段落": {"行号": [1, 2], "内容": ["甲"]}}),
    ("mnbvc_qa", {"问": "问", "答": "答", "元数据": {"回答明细": ["明细"]}}),
])
def test_what_is_no_conversation_is_named_and_never_half_a_record(write: Callable[..., Path], name: str, row: Row) -> None:
    """Questions without answers, empty conversations, or columns of which a shorter one silently cuts the other."""
    good, bad = split(name, write(framed(name, [dumped(row)])))
    assert not good and len(bad) == 1


@pytest.mark.parametrize("name", SOURCES)
@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES)
@QUICK
def test_any_json_is_a_record_or_a_reason(name: str, value: object) -> None:
    """Any type under any key of any source."""
    raw = files.RawRecord("file", 1, json.dumps(value).encode())
    found = SOURCES[name].decode(raw)
    assert isinstance(found, Document | Conversation | Summary | Unused) or found.reason.isprintable()
