"""Bad files: noise, whatever bytes, halves of files and paths that are no files cost what they hit, and never in silence."""

import gzip
import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import UserError
from data.readers import files
from data.readers.files import expand
from data.records import Document
from data.sources import SOURCES
from tests.helpers.native_corpora import LINES, LISTS, QUICK, ROWS, dumped, framed, said, split


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
        assert data.startswith((b"PAR1", *files._ARCHIVES))
        return
    if data.strip(b" \t\r\n\v\f") and not data.startswith((b"\x1f\x8b", b"\xef\xbb\xbf")) and b"[" not in data:
        assert good or bad or name in ("csl", "lcsts")


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
