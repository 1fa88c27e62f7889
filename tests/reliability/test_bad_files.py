"""Bad files: noise, truncation and wrong paths cost the records they hit, and are reported."""

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
from data.readers.files import expand_inputs
from data.records import Document
from data.sources import SOURCES
from tests.helpers.native_corpora import (
    JSON_ARRAY_SOURCES,
    QUICK_SETTINGS,
    RECORD_WRITERS,
    ROW_BUILDERS,
    join_rows,
    read_good_and_bad,
    to_json_bytes,
    unique_sentence,
)


def _spoil(data: bytes, at: int, how: str, with_: bytes) -> bytes:
    return {
        "overwritten": data[:at] + with_ + data[at + len(with_) :],
        "inserted": data[:at] + with_ + data[at:],
        "deleted": data[:at] + data[at + len(with_) :],
        "cut short": data[:at],
    }[how]


@pytest.mark.slow
@pytest.mark.parametrize("shape", RECORD_WRITERS)
@given(
    draw=st.data(),
    how=st.sampled_from(["overwritten", "inserted", "deleted", "cut short"]),
    noise=st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"\0", b"\n", b"\r", b'"', b"}", b"\xff", b"</doc>", b"<doc>"]),
)
@QUICK_SETTINGS
def test_noise_in_line_file_affects_only_hit_records(
    write: Callable[..., Path], shape: str, draw: st.DataObject, how: str, noise: bytes
) -> None:
    """Prevents silent loss of records that the noise did not touch."""
    name, make = RECORD_WRITERS[shape]
    pieces = [make(number) for number in range(5)]
    data = b"".join(pieces)
    at = draw.draw(st.integers(len(pieces[0]), len(data) - 1), label="at")
    path = write(_spoil(data, at, how, noise))
    good, bad = read_good_and_bad(name, path)
    ends = list(itertools.accumulate(map(len, pieces)))
    reach = at + (len(noise) if how in ("overwritten", "deleted") else 0)
    untouched = [
        piece
        for piece, end in zip(pieces, ends, strict=True)
        if end <= at or (how != "cut short" and end - len(piece) > reach)
    ]
    assert all(SOURCES[name].parse(piece) in good for piece in untouched)
    # What was hit is changed or bad, never gone; only a cut may fall between two records.
    assert len(good) + len(bad) >= len(untouched) + (how != "cut short")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(JSON_ARRAY_SOURCES))
@given(
    draw=st.data(),
    how=st.sampled_from(["overwritten", "inserted", "deleted", "cut short"]),
    noise=st.binary(min_size=1, max_size=12)
    | st.sampled_from([b"\0", b'"', b"}", b"]", b"[", b"{", b",", b"\\"]),
)
@QUICK_SETTINGS
def test_noise_in_json_array_is_always_reported(
    write: Callable[..., Path], name: str, draw: st.DataObject, how: str, noise: bytes
) -> None:
    """Prevents silent loss of records in a damaged JSON array."""
    rows = [to_json_bytes(ROW_BUILDERS[name](number)) for number in range(5)]
    data = join_rows(name, rows)
    at = draw.draw(st.integers(1, len(data) - 1), label="at")
    good, bad = read_good_and_bad(name, write(_spoil(data, at, how, noise)))
    assert len(good) >= 5 or bad


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
@given(
    data=st.binary(max_size=200)
    | st.lists(
        st.sampled_from(
            [
                b"[",
                b"]",
                b"{",
                b"}",
                b'"',
                b",",
                b":",
                b"\n",
                b"\t",
                b"<doc>",
                b"</doc>",
                b"<short_text>",
                b"\xef\xbb\xbf",
                b"\0",
                b"1e999",
                b'"text"',
                b'{"text":"a"}',
                b"Human:",
                b"\\ud800",
                b"\xff",
                b"to title\t",
            ]
        ),
        max_size=40,
    ).map(b"".join)
)
@example(data=b"")
@example(data=b"\xef\xbb\xbf")
@example(data=b"\0" * 100)
@example(data=b"[" * 50_000)
@example(data=b"\x1f\x8b")
@example(data=b"PAR1")
@QUICK_SETTINGS
def test_arbitrary_bytes_do_not_crash_a_source(
    write: Callable[..., Path], name: str, data: bytes
) -> None:
    """Prevents an exception for unexpected bytes; archives and half parquet files are refused."""
    path = write(data)
    try:
        good, bad = read_good_and_bad(name, path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        assert data.startswith((b"PAR1", *files._ARCHIVE_MAGIC))
        return
    if (
        data.strip(b" \t\r\n\v\f")
        and not data.startswith((b"\x1f\x8b", b"\xef\xbb\xbf"))
        and b"[" not in data
    ):
        assert good or bad or name in ("csl", "lcsts")


@pytest.mark.slow
@pytest.mark.parametrize("shape", RECORD_WRITERS)
def test_truncated_gzip_keeps_prefix_and_reports_rest(
    write: Callable[..., Path], shape: str
) -> None:
    """Prevents the loss of the records before the cut, and silence about the rest."""
    name, make = RECORD_WRITERS[shape]
    packed = gzip.compress(b"".join(make(number) for number in range(400)), mtime=0)
    good, bad = read_good_and_bad(name, write(packed[: len(packed) // 2]))
    assert (
        good == [SOURCES[name].parse(make(number)) for number in range(len(good))]
        and len(good) > 50
    )
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


@pytest.mark.slow
def test_parquet_binary_column_is_read_as_text(parquet: Callable[..., Path]) -> None:
    """Prevents `b'\\xe4…'` in place of Chinese from writers that do not mark text as text."""
    import pyarrow

    path = parquet(
        text=pyarrow.array(["中文".encode(), b"\xff\x00", "字".encode()], pyarrow.binary())
    )
    good, bad = read_good_and_bad("jsonl", path)
    assert good == [Document("中文"), Document("字")] and [record.line for record in bad] == [2]


def test_unrepresentable_value_rejects_only_its_row(parquet: Callable[..., Path]) -> None:
    """Prevents a traceback for text that is not UTF-8, or a date in the year 148,000."""
    import pyarrow

    text = pyarrow.Array.from_buffers(
        pyarrow.string(),
        3,
        [None, *map(pyarrow.py_buffer, (b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0", b"a\xffb"))],
    )
    good, bad = read_good_and_bad("jsonl", parquet(text=text))
    assert good == [Document("a"), Document("b")] and [record.line for record in bad] == [2]
    times = pyarrow.array([0, 2**62, 1], pyarrow.timestamp("us"))
    good, bad = read_good_and_bad("jsonl", parquet(text=["a", "b", "c"], created=times))
    assert good == [Document("a"), Document("c")] and [record.line for record in bad] == [2]


@pytest.mark.slow
@given(at=st.integers(4, 2000), noise=st.binary(min_size=1, max_size=30))
@QUICK_SETTINGS
def test_noise_in_parquet_reads_or_raises_user_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes
) -> None:
    """Prevents tracebacks for damaged parquet files."""
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [unique_sentence(n) for n in range(20)]}),
        file,
        write_page_checksum=True,
    )
    data = file.getvalue()
    path = tmp_path_factory.mktemp("parquet") / "file.parquet"
    path.write_bytes(_spoil(data, at % len(data), "overwritten", noise))
    try:
        good, bad = read_good_and_bad("jsonl", path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert len(good) + len(bad) == 20 or noise in data or at >= len(data)


# Paths


def test_folders_pipes_and_dangling_links_are_not_read_as_files(tmp_path: Path) -> None:
    """Prevents reading a folder as a file, and a pipe whose beginning is gone."""
    (tmp_path / "corpus.jsonl").mkdir()
    (tmp_path / "corpus.jsonl" / "inner.jsonl").write_bytes(to_json_bytes(ROW_BUILDERS["jsonl"](0)))
    assert [path.name for path in expand_inputs([str(tmp_path / "corpus.jsonl")])] == [
        "inner.jsonl"
    ]
    for source in SOURCES.values():
        with pytest.raises(UserError, match=r"corpus\.jsonl: cannot be read"):
            list(source.iter_records(tmp_path / "corpus.jsonl"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is a pipe or a device"):
        expand_inputs([str(tmp_path)])
    with pytest.raises(UserError, match="/dev/zero: is a pipe or a device"):
        expand_inputs(["/dev/zero"])
