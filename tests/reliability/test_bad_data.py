"""Bad data: whatever a native file holds, every record of it comes out, is unused on purpose, or is quarantined by name.

`NATIVE` has a few sound records of every source in the shape of its release; the tests spoil them in every way that files
are spoilt, and look what becomes of the sound ones beside it.
"""

import gzip
import io
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data import reading
from data.inputs import Group
from data.prepare import PrepareOptions, prepare_groups
from data.reading import expand
from data.records import BadRecord, Conversation, Document, Record, Summary, Unused
from data.shards import ShardSet
from data.sources import SOURCES
from data.tokenizer_texts import STRINGS
from evaluate.predictions import read_predictions
from evaluate.records import read_records

QUICK = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
Row = dict[str, Any]
WORDS = "春天的风从山那边吹过来，河水慢慢涨高，村里的人把船推下水，说今年的鱼一定又大又肥。"


def said(number: int) -> str:
    """A sentence of its own that cleaning keeps and no deduplication takes for another."""
    chance = random.Random(number)
    return "".join(chance.choices(WORDS, k=60)) + f"第{number}句"


def _dialogue(number: int) -> str:
    return f"Human:{said(number)}\n\nAssistant:{said(number + 100)}"


# Source → a row of its release; the first keys, as many as REQUIRED says, cannot be left out.
ROWS: dict[str, Callable[[int], Row]] = {
    "wikipedia": lambda n: {"text": said(n), "id": str(n), "url": "u", "title": f"题{n}"},
    "wiki_zh_2019": lambda n: {"text": f"题{n}\n\n{said(n)}", "id": str(n), "url": "u", "title": f"题{n}"},
    "mnbvc": lambda n: {"段落": [{"行号": 1, "内容": said(n)}], "文件名": f"{n}", "simhash": 2**64 - 1},
    "mnbvc_qa": lambda n: {"问": said(n), "答": said(n + 100), "id": n, "元数据": {"问题明细": said(n + 200)}},
    "jsonl": lambda n: {"text": said(n), "source": "x"},
    "redgpt": lambda n: {"reference": said(n), "dialogue": _dialogue(n)},
    "naturalconv": lambda n: {"content": [said(n), said(n + 100)], "dialog_id": str(n)},
    "belle-0.5m": lambda n: {"output": said(n), "instruction": said(n + 100), "input": ""},
    "belle-0.8m": lambda n: {"output": said(n), "instruction": f"Human:{said(n + 100)}\nAssistant:", "input": ""},
    "deepctrl": lambda n: {"output": said(n), "instruction": said(n + 100), "input": "", "history": [["问", "答"]]},
    "pclue": lambda n: {"input": said(n), "target": said(n + 100), "type": "mrc", "answer_choices": ""},
    "alpaca": lambda n: {"output": said(n), "instruction": said(n + 100), "input": ""},
    "sharegpt": lambda n: {"conversations": [{"from": "human", "value": said(n)}, {"from": "gpt", "value": said(n + 100)}]},
    "openai": lambda n: {"messages": [{"role": "user", "content": said(n)}, {"role": "assistant", "content": said(n + 100)}]},
    "csl": lambda n: {"content": said(n) + said(n + 100), "summary": said(n + 200)},
    "lcsts": lambda n: {"text": said(n) + said(n + 100), "summary": said(n + 200)},
}
REQUIRED = {"mnbvc_qa": 2, "redgpt": 2, "pclue": 2, "csl": 2, "lcsts": 2}
LISTS = {"naturalconv", "alpaca"}


def dumped(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def framed(name: str, rows: list[bytes]) -> bytes:
    """Rows as the release of a source writes them."""
    return b"[" + b",\n".join(rows) + b"]" if name in LISTS else b"".join(row + b"\n" for row in rows)


def table(number: int) -> bytes:
    return f"{said(number)}\t{said(number + 100) * 2}\n".encode()


def pseudo_xml(number: int) -> bytes:
    text = f"<doc id={number}>\n<human_label>5</human_label>\n<summary>\n{said(number)}\n</summary>\n"
    return (text + f"<short_text>\n{said(number + 100) * 2}\n</short_text>\n</doc>\n").encode()


# Every shape that is read: name → its source and record number → bytes, one record by itself.
LINES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    **{name: (name, lambda n, row=row: dumped(row(n)) + b"\n") for name, row in ROWS.items() if name not in LISTS},
    "csl table": ("csl", table), "lcsts native": ("lcsts", pseudo_xml),
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(data: bytes, name: str = "file.jsonl") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return _write


def split(name: str, path: Path) -> tuple[list[Record], list[BadRecord]]:
    """What a source makes of a file, after a look whether each bad record names its place in one printable line."""
    found = list(SOURCES[name].open(path))
    bad = [record for record in found if isinstance(record, BadRecord)]
    for record in bad:
        assert record.file == str(path) and record.line >= 1
        assert record.reason and record.reason.isprintable() and len(record.reason) < 1000
    return [record for record in found if isinstance(record, Document | Conversation | Summary)], bad


def sound(name: str, rows: list[Row]) -> list[Record]:
    return [record for record in map(SOURCES[name].parse, map(dumped, rows)) if not isinstance(record, Unused)]


# One record spoilt among sound ones


def _without(row: Row, key: str) -> Row:
    return {k: v for k, v in row.items() if k != key}


def spoilt(name: str) -> dict[str, bytes]:
    """The third row of a source, spoilt in every way that must cost it and nothing else."""
    row, keys = ROWS[name](2), list(ROWS[name](2))[: REQUIRED.get(name, 1)]
    whole = dumped(row)
    found = {f"no {key}": dumped(_without(row, key)) for key in keys}
    found |= {
        f"{key} is {value!r}": dumped({**row, key: value})
        for key in keys for value in (None, True, 7, -1.5, [], {}, [1, None], {"a": 1}, [[]], "", " \n")
        if not (name == "mnbvc" and value in ([], {})) and not (name == "mnbvc_qa" and not str(value).strip())
        and not (name in ("wikipedia", "wiki_zh_2019", "jsonl") and isinstance(value, str))
    }
    found |= {
        "invalid UTF-8": whole.replace("风".encode(), b"\xff\xfe", 1), "a character cut in two": whole.replace(
            "春".encode(), "春".encode()[:2], 1),
        "lone surrogate": json.dumps(row).encode().replace(b"\\u", b"\\ud800\\u", 1), "NUL": whole.replace(b'": ', b'": \0', 1),
        "deep nesting": b'{"%s": ' % keys[0].encode() + b"[" * 5000 + b"]" * 5000 + b"}",
        "deep objects": b'{"%s": ' % keys[0].encode() + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        "gigantic number": dumped(row)[:-1] + b', "n": 1%s}' % (b"0" * 5000) if name in LISTS else b"1" * 5000,
        "no object": b'"text"', "empty object": b"{}", "keys that are no text": b"{1: 2}",
        "a control code in a key": b'{"a\\nb\\u001b[31m": 1}', "a key of a megabyte": b'{"%s": 1}' % (b"k" * (1 << 20)),
    }
    if name in LISTS:
        del found["gigantic number"]  # JSON sets no limit: the standard parser reads it, orjson as a float
    else:
        found["cut short"] = whole[: len(whole) // 2]
        found["two on a line"] = whole + whole
    return found


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


# Files spoilt anywhere


def _spoil(data: bytes, at: int, how: str, with_: bytes) -> bytes:
    return {"overwritten": data[:at] + with_ + data[at + len(with_):], "inserted": data[:at] + with_ + data[at:],
            "deleted": data[:at] + data[at + len(with_):], "cut short": data[:at]}[how]


@pytest.mark.parametrize("shape", LINES)
@given(draw=st.data(), how=st.sampled_from(["overwritten", "inserted", "deleted", "cut short"]),
       noise=st.binary(min_size=1, max_size=12) | st.sampled_from([b"\0", b"\n", b"\r", b'"', b"}", b"\xff", b"</doc>",
                                                                        b"<doc>"]))
@QUICK
def test_noise_in_a_file_of_lines_costs_only_the_records_it_hits(
    write: Callable[..., Path], shape: str, draw: st.DataObject, how: str, noise: bytes
) -> None:
    """A silent loss: a record that noise did not touch is not there, and nothing says so."""
    name, make = LINES[shape]
    pieces = [make(number) for number in range(5)]
    data = b"".join(pieces)
    at = draw.draw(st.integers(len(pieces[0]), len(data) - 1), label="at")
    path = write(_spoil(data, at, how, noise))
    good, bad = split(name, path)
    ends = list(itertools.accumulate(map(len, pieces)))
    reach = at + (len(noise) if how in ("overwritten", "deleted") else 0)
    untouched = [piece for piece, end in zip(pieces, ends, strict=True)
                 if end <= at or (how != "cut short" and end - len(piece) > reach)]
    assert all(SOURCES[name].parse(piece) in good for piece in untouched)
    # What was hit is changed or bad, never gone; only a cut may fall between two records.
    assert len(good) + len(bad) >= len(untouched) + (how != "cut short")


@pytest.mark.parametrize("name", sorted(LISTS))
@given(draw=st.data(), how=st.sampled_from(["overwritten", "inserted", "deleted", "cut short"]),
       noise=st.binary(min_size=1, max_size=12) | st.sampled_from([b"\0", b'"', b"}", b"]", b"[", b"{", b",", b"\\"]))
@QUICK
def test_noise_in_a_json_list_is_never_silent(
    write: Callable[..., Path], name: str, draw: st.DataObject, how: str, noise: bytes
) -> None:
    rows = [dumped(ROWS[name](number)) for number in range(5)]
    data = framed(name, rows)
    at = draw.draw(st.integers(1, len(data) - 1), label="at")
    good, bad = split(name, write(_spoil(data, at, how, noise)))
    assert len(good) >= 5 or bad


@pytest.mark.parametrize("name", SOURCES)
@given(data=st.binary(max_size=200) | st.lists(st.sampled_from([
    b"[", b"]", b"{", b"}", b'"', b",", b":", b"\n", b"\t", b"<doc>", b"</doc>", b"<short_text>", b"\xef\xbb\xbf", b"\0",
    b"1e999", b'"text"', b'{"text":"a"}', b"Human:", b"\\ud800", b"\xff", b"to title\t"]), max_size=40).map(b"".join))
@example(data=b"")
@example(data=b"\xef\xbb\xbf")
@example(data=b"\0" * 100)
@example(data=b"[" * 50_000)
@example(data=b"\x1f\x8b")
@example(data=b"PAR1")
@QUICK
def test_no_bytes_crash_a_source(write: Callable[..., Path], name: str, data: bytes) -> None:
    """An exception for bytes nobody thought of. An archive or half a parquet file is one line that refuses the file."""
    path = write(data)
    try:
        good, bad = split(name, path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert data.startswith((b"PAR1", *reading._ARCHIVES))
        return
    if data.strip(b" \t\r\n\v\f") and not data.startswith((b"\x1f\x8b", b"\xef\xbb\xbf")) and b"[" not in data:
        assert good or bad or name in ("csl", "lcsts")


KEYS = sorted({key for row in ROWS.values() for key in row(0)} | {
    "行号", "内容", "问题明细", "回答明细", "from", "value", "role", "system", "history", "abst", "tool_calls", "type"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["human", "gpt", "user", "assistant", "Human:问\nAssistant:答", "to title\t甲\t乙", "\0", "\ufeff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=12,
)


@pytest.mark.parametrize("name", SOURCES)
@given(value=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES)
@QUICK
def test_any_json_is_a_record_or_a_reason(name: str, value: object) -> None:
    """Any type under any key of any source."""
    raw = reading.RawRecord("file", 1, json.dumps(value).encode())
    found = SOURCES[name].decode(raw)
    assert isinstance(found, Document | Conversation | Summary | Unused) or found.reason.isprintable()


@pytest.mark.parametrize("shape", LINES)
def test_a_gzip_cut_short_keeps_what_came_before_and_names_the_rest(write: Callable[..., Path], shape: str) -> None:
    name, make = LINES[shape]
    packed = gzip.compress(b"".join(make(number) for number in range(400)), mtime=0)
    good, bad = split(name, write(packed[: len(packed) // 2]))
    assert good == [SOURCES[name].parse(make(number)) for number in range(len(good))] and len(good) > 50
    assert len(bad) == 1 and "damaged or cut short" in bad[0].reason


# Parquet


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    import pyarrow
    import pyarrow.parquet

    def _parquet(**columns: Any) -> Path:
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "file.parquet")
        return tmp_path / "file.parquet"

    return _parquet


def test_parquet_text_that_is_stored_as_bytes_is_text(parquet: Callable[..., Path]) -> None:
    """`b'\\xe4…'` in place of Chinese, from the many writers that do not mark text as text; and bytes that are none."""
    import pyarrow

    path = parquet(text=pyarrow.array(["中文".encode(), b"\xff\x00", "字".encode()], pyarrow.binary()))
    good, bad = split("jsonl", path)
    assert good == [Document("中文"), Document("字")] and [record.line for record in bad] == [2]


def test_one_value_that_cannot_be_held_costs_its_own_row(parquet: Callable[..., Path]) -> None:
    """A traceback from the middle of a file: text that is no UTF-8, a date in the year 148,000."""
    import pyarrow

    text = pyarrow.Array.from_buffers(pyarrow.string(), 3, [None, *map(pyarrow.py_buffer, (
        b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0", b"a\xffb"))])
    good, bad = split("jsonl", parquet(text=text))
    assert good == [Document("a"), Document("b")] and [record.line for record in bad] == [2]
    times = pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us"))
    good, bad = split("jsonl", parquet(text=["a", "b", "c"], made=times))
    assert good == [Document("a"), Document("c")] and [record.line for record in bad] == [2]


@given(at=st.integers(4, 2000), noise=st.binary(min_size=1, max_size=30))
@QUICK
def test_noise_in_a_parquet_file_is_a_users_error_or_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": [said(n) for n in range(20)]}), file, write_page_checksum=True)
    data = file.getvalue()
    path = tmp_path_factory.mktemp("parquet") / "file.parquet"
    path.write_bytes(_spoil(data, at % len(data), "overwritten", noise))
    try:
        good, bad = split("jsonl", path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(good) + len(bad) == 20 or noise in data or at >= len(data)


# Paths


def test_folders_pipes_and_dangling_links_are_told_apart_from_files(tmp_path: Path) -> None:
    """A folder with a file's name, read as one; a pipe, whose beginning is gone when it is read the second time."""
    (tmp_path / "corpus.jsonl").mkdir()
    (tmp_path / "corpus.jsonl" / "inner.jsonl").write_bytes(dumped(ROWS["jsonl"](0)))
    assert [path.name for path in expand([str(tmp_path / "corpus.jsonl")])] == ["inner.jsonl"]
    for source in SOURCES.values():
        with pytest.raises(UserError, match=r"corpus\.jsonl: cannot be read"):
            list(source.open(tmp_path / "corpus.jsonl"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a pipe or a device"):
        expand([str(tmp_path)])
    with pytest.raises(UserError, match="/dev/zero: is a pipe or a device"):
        expand(["/dev/zero"])


# End to end


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
