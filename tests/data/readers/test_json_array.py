"""JSON lists: elements are read as written, and a fault costs only what it spoils."""

import functools
import gzip
import itertools
import json
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.readers import files
from data.readers.files import RawRecord, read_records
from data.readers.json_array import JsonArrayReader
from data.records import BadRecord


def elements(
    data: bytes, block: int = 1 << 20, limit: int = 1 << 20
) -> list[tuple[int, bytes, str | None]]:
    return list(
        JsonArrayReader((data[at : at + block] for at in range(0, len(data), block)), limit)
    )


def whole(items: list[tuple[int, bytes, str | None]]) -> list[bytes]:
    return [data for _, data, problem in items if problem is None]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(data: bytes, name: str = "list.json") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return _write


def read(path: Path) -> tuple[list[RawRecord], list[BadRecord]]:
    items = list(read_records(path))
    return [r for r in items if isinstance(r, RawRecord)], [
        r for r in items if isinstance(r, BadRecord)
    ]


# Real files


@functools.cache
def parsed(path: Path) -> list[object]:
    return list(
        json.loads(
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        )
    )


@pytest.mark.slow
def test_real_json_array_matches_standard_parser(shared: Path) -> None:
    """Prevents an element of a real file from being lost, split or altered."""
    path = shared / "data/sft/alpaca/alpaca_zh_demo.json"
    good, bad = read(path)
    assert not bad
    assert [orjson.loads(record.data) for record in good] == parsed(path)
    assert [record.line for record in good] == list(range(1, len(good) + 1))


@pytest.mark.parametrize("name", ["dialog_release.json.gz", "dialog_release.test.json"])
def test_sample_json_arrays_are_read_completely(root: Path, name: str) -> None:
    """Prevents an element of the sample from being lost, split or altered."""
    path = root / "assets" / "sample" / "sft" / "naturalconv" / name
    good, bad = read(path)
    assert not bad and len(good) > 50
    assert [orjson.loads(record.data) for record in good] == parsed(path)


def test_real_malformed_json_array_loses_no_records(shared: Path) -> None:
    """Prevents a comma before the last bracket from costing more than one bad record."""
    path = shared / "data" / "malformed" / "alpaca_invalid.json"
    with pytest.raises(json.JSONDecodeError):
        json.loads(path.read_bytes())
    good, bad = read(path)
    expected = json.loads(re.sub(r",\s*\]\s*$", "]", path.read_text(encoding="utf-8")))
    assert [orjson.loads(record.data) for record in good] == expected and len(expected) > 2000
    assert [(record.line, record.reason) for record in bad] == [
        (len(expected) + 1, "there is a comma and no element")
    ]


def test_bad_element_in_real_array_rejects_only_itself(
    root: Path, write: Callable[..., Path]
) -> None:
    """Prevents a missing quotation mark from silently ending the file.

    One bad record would then pass for one of a thousand.
    """
    path = root / "assets" / "sample" / "sft" / "naturalconv" / "dialog_release.test.json"
    data, rows = path.read_bytes(), parsed(path)
    start = data.index(b'{"dialog_id"', len(data) // 2)
    number = data[:start].count(b'{"dialog_id"')
    for character in (b'"', b"]", b"}", b"[", b":"):
        at = data.index(character, start + 40)
        good, bad = read(write(data[:at] + data[at + 1 :]))
        assert [orjson.loads(record.data) for record in good] == rows[:number] + rows[
            number + 1 :
        ], character
        assert [record.line for record in bad] == [number + 1]
        assert "left out here" in bad[0].reason


# Elements


def test_element_bytes_are_unchanged(write: Callable[..., Path]) -> None:
    """Prevents numbers that pass through floats, and characters that are replaced."""
    written = [
        b'{"simhash": 18446744073709551615, "x": 0.10000000000000000555, "y": 1E400, "z": -0.0}',
        b'{"big": 123456789012345678901234567890, "same": 1, "same": 2}',
        b'{"text": "\\ud800 \\u4e2d \xff\xfe \\" [ ] { } , \\\\"}',
        '{"中": "文，]}"}'.encode(),
        b"3.50",
        b'"a, b"',
        b"[[], [1, {}]]",
        b"null",
        b"NaN",
    ]
    good, bad = read(write(b" \r\n[" + b" ,\n\t".join(written) + b"]\n"))
    assert not bad
    assert [record.data for record in good] == written


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \t", b"\xef\xbb\xbf\r\n"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_array_is_detected_by_first_character(
    write: Callable[..., Path], start: bytes, packed: bool
) -> None:
    """Prevents a list after blanks or a byte order mark from being read as lines."""
    data = start + b'[{"a": 1},\n{"a": 2}]'
    good, bad = read(write(gzip.compress(data) if packed else data))
    assert ([record.data for record in good], bad) == ([b'{"a": 1}', b'{"a": 2}'], [])


@pytest.mark.parametrize("data", [b"[]", b" [\n]\n", b"[][]"])
def test_an_empty_list_has_no_records(write: Callable[..., Path], data: bytes) -> None:
    """Prevents an empty list from being a bad record."""
    assert read(write(data)) == ([], [])


def test_concatenated_arrays_are_all_read(write: Callable[..., Path]) -> None:
    """Prevents the second list of `cat a.json b.json` from being left out."""
    assert [record.data for record in read(write(b'[{"a":1}]\n[{"a":2},{"a":3}]'))[0]] == [
        b'{"a":1}',
        b'{"a":2}',
        b'{"a":3}',
    ]


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    st.lists(VALUES, max_size=8), st.integers(1, 40), st.sampled_from([None, 0, 3]), st.booleans()
)
@settings(deadline=None, max_examples=100)
def test_any_array_parses_at_any_block_size(
    values: list[object], block: int, indent: int | None, ascii_: bool
) -> None:
    """Prevents a block border in a number, character, escape or name from breaking an element."""
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")
    items = elements(data, block)
    assert [problem for _, _, problem in items] == [None] * len(values)
    assert [json.loads(text.decode("utf-8", "surrogatepass")) for _, text, _ in items] == values


# Faults


@pytest.mark.parametrize(
    ("data", "good", "bad"),
    [
        (b'[{"a":1},{"a":2}', [1, 2], [3]),
        (b'[{"a":1},{"a":2},', [1, 2], [3]),
        (b'[{"a":1},{"a":"2', [1], [2]),
        (b"[", [], [1]),
        (b'[{"a":1},{"a":2},]', [1, 2], [3]),
        (b'[{"a":1},,{"a":3}]', [1, 3], [2]),
        (b'[{"a":1}{"a":2}]', [1, 2], [2]),
        (b'[{"a":1},{"a":x},{"a":3}]', [1, 3], [2]),
        (b'[{"a":1},{"a":"2},{"a":"3"},{"a":4}]', [1, "3", 4], [2]),
        (b'[{"a":1},{"a":["2},{"a":["3"]},{"a":4}]', [1, ["3"], 4], [2]),
        (b'[{"a":1},{"a":2,{"a":3},{"a":4}]', [1, 3, 4], [2]),
        (b'[{"a":1},{"a":2}},{"a":3}]', [1, 2, 3], [3]),
        (b'[{"a":1},{"a":"2\n"},{"a":3}]', [1, 3], [2]),
        (b'[{"a":"1},{"a":2},{"a":3}]', [2, 3], [1]),
        (b'[{"a:1},{"a":2},{"a":3}]', [2, 3], [1]),
        (b'[{"a":1},{"a":2}] and more', [1, 2], [3]),
        (b'[{"a":1},{"a":2}]]', [1, 2], [3]),
        (b"[<html>", [], [1]),
    ],
)
@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_syntax_error_is_a_bad_record_at_its_position(
    data: bytes, good: list[object], bad: list[int], block: int
) -> None:
    """Prevents a syntax error from costing its neighbors, or from having the wrong number."""
    items = elements(data, block)
    assert [orjson.loads(text)["a"] for text in whole(items)] == good
    assert [number for number, _, problem in items if problem] == bad


def test_nested_array_element_is_not_split() -> None:
    """Prevents reading from continuing at a nested object after a fault."""
    rows = [
        {"id": "x", "turns": [{"from": "a", "value": str(number)}, {"from": "b"}]}
        for number in range(4)
    ]
    data = json.dumps(rows).encode().replace(b'"value": "1"', b'"value": "1')
    items = elements(data)
    assert [json.loads(text) for text in whole(items)] == [rows[0], *rows[2:]]
    assert [number for number, _, problem in items if problem] == [2]


@pytest.mark.slow
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), VALUES, min_size=1, max_size=3),
        min_size=1,
        max_size=6,
    ),
    st.data(),
    st.integers(1, 60),
)
@settings(deadline=None, max_examples=50)
def test_truncated_array_keeps_complete_elements(
    rows: list[object], draw: st.DataObject, block: int
) -> None:
    """Prevents the elements before a cut from being lost."""
    texts = [json.dumps(row).encode() for row in rows]
    ends = list(itertools.accumulate([1 + len(texts[0]), *(1 + len(text) for text in texts[1:])]))
    data = b"[" + b",".join(texts) + b"]"
    cut = draw.draw(st.integers(1, len(data) - 1))
    items = elements(data[:cut], block)
    num_complete = sum(end <= cut for end in ends)
    assert whole(items)[:num_complete] == texts[:num_complete]
    assert items[-1][2] is not None
    # Nothing but pieces of the element that was cut follows.
    assert all(
        text in texts[min(num_complete, len(texts) - 1)] for text in whole(items)[num_complete:]
    )


@pytest.mark.slow
@given(st.binary(max_size=80), st.integers(1, 80))
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_after_bracket_do_not_crash(data: bytes, block: int) -> None:
    """Prevents noise from ending the program."""
    for number, text, problem in elements(b"[" + data, block):
        assert number >= 1 and bool(problem) != bool(text)


def test_oversized_element_is_bad_and_others_are_kept(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an endless element from filling the memory."""
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    monkeypatch.setattr(files, "BLOCK_BYTES", 1 << 14)
    long = b'{"a": "' + b"x" * (3 << 20) + b'"}'
    good, bad = read(write(b'[{"a": 1}, ' + long + b', {"a": 3}]'))
    assert [record.data for record in good] == [b'{"a": 1}', b'{"a": 3}']
    assert [record.line for record in bad] == [2]
    # The limit is one of characters, of which Chinese text has a third as many as bytes.
    assert "longer than 1,048,576 characters" in bad[0].reason


def test_unclosed_brackets_are_one_bad_record() -> None:
    """Prevents nesting without end from exhausting the stack or the memory."""
    items = elements(b"[" * 100_000)
    assert len(items) == 1 and items[0][2] and items[0][2].startswith("nested too deeply")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"x", "expected a list, not 'x'"),
        (b"[,]", "expected an element, not ','"),
        (b'[{"a": 1} {"a": 2}]', "expected a comma, not '{'"),
        (b"[1 \xff]", r"expected a comma, not '\udcff'"),
    ],
)
def test_unexpected_character_is_named(data: bytes, problem: str) -> None:
    """Prevents a message that says that something is wrong, but not what stands there."""
    problems = [error for _, _, error in elements(data) if error is not None]
    assert len(problems) == 1 and problems[0].partition(";")[0] == problem


def test_damaged_gzip_keeps_prefix_and_reports_error(
    write: Callable[..., Path], root: Path
) -> None:
    """Prevents the elements before damage from being lost, and the damage from being hidden."""
    path = root / "assets" / "sample" / "sft" / "naturalconv" / "dialog_release.json.gz"
    data = path.read_bytes()
    good, bad = read(write(data[: len(data) // 2]))
    assert [orjson.loads(record.data) for record in good] == parsed(path)[: len(good)] and len(
        good
    ) > 200
    assert len(bad) == 1 and bad[0].line == len(good) + 1
    assert "compressed data is damaged or cut short" in bad[0].reason


# Memory and progress


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_list(tmp_path: Path) -> None:
    """Prevents a list from being collected in memory."""
    path = tmp_path / "list.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b"[")
        for index in range(2000):
            file.write(b'%s{"text": "%s"}' % (b", " if index else b"", b"%d" % index * 4000))
        file.write(b"]")
    tracemalloc.start()
    count = sum(isinstance(record, RawRecord) for record in read_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 8 << 20


@pytest.mark.parametrize("packed", [False, True])
def test_progress_adds_up_to_the_files_size(write: Callable[..., Path], packed: bool) -> None:
    """Prevents a progress bar that ends before or beyond the end."""
    data = json.dumps([{"a": "b" * 1000}] * 3000).encode()
    path = write(gzip.compress(data) if packed else data)
    reported: list[int] = []
    assert len(list(read_records(path, reported.append))) == 3000
    assert sum(reported) == path.stat().st_size and min(reported) >= 0


def test_blocks_are_read_lazily() -> None:
    """Prevents a list of many gigabytes from being read before its first element is yielded."""
    taken = []

    def blocks() -> Iterator[bytes]:
        for number in itertools.count():
            taken.append(number)
            yield b"[" * (number == 0) + b'{"a": 1}, ' * 100

    given_out = list(itertools.islice(JsonArrayReader(blocks(), 1 << 20), 1000))
    assert len(given_out) == 1000 and len(taken) < 15
