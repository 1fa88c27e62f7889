"""Read files as numbered raw records, in flat memory whatever the files contain.

A raw record is the bytes of one record and their place: a line of a JSONL file, an element of a
JSON list, a row of a parquet file, a chunk of a plain text. What cannot be read becomes a
`BadRecord` in its place, so that records and bad records together always add up to what was there.
Nothing here knows the schema of a dataset.
"""

import glob
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.json_array import JsonArrayReader
from data.records import BadRecord

MAX_LINE_BYTES = 1 << 26
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
PARQUET_BATCH_ROWS = 256
PLAIN_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_ARCHIVE_MAGIC = {
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
_WHITESPACE = b" \t\r\n\v\f"
# How a compressed file that is damaged or cut short fails. BadGzipFile is an OSError, so it is
# caught first.
_DAMAGE_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """The bytes of one record.

    `line` is its first line, or its number in a JSON list or parquet file, counted from 1.
    """

    file: str
    line: int
    data: bytes


RawItem = RawRecord | BadRecord
ProgressCallback = Callable[[int], object]


def expand_inputs(inputs: list[str]) -> list[Path]:
    """Return the files that inputs (files, folders, globs) name, without duplicates.

    Folders are walked recursively, in sorted order; hidden names are left out. Raises UserError for
    an input without files.
    """
    unique_files: dict[Path, None] = {}
    for text in inputs:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches:
            problem = "there is no such file or folder"
            if glob.has_magic(text):
                problem = "no file matches it"
            raise UserError(f"--input {text}: {problem}")
        files = [file for match in matches for file in _walk_files(Path(match))]
        for file in files:
            if file.exists() and not file.is_file():
                raise UserError(
                    f"--input {file}: is a pipe or a device, which cannot be read twice: save it "
                    "as a file first"
                )
        if not files:
            raise UserError(f"--input {text}: there are no files in it (hidden ones are left out)")
        unique_files.update(dict.fromkeys(files))
    return list(unique_files)


def has_text_suffix(path: Path) -> bool:
    """Return whether the name of a file, without `.gz`, ends like one of plain text."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in PLAIN_TEXT_SUFFIXES


def _walk_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read_records(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """Yield the elements of a JSON list, the lines of a text, or the rows of a parquet file.

    Lists and texts may be compressed with gzip. Rows are encoded as JSON. Blank lines are not
    records. `on_bytes_read` is called with numbers of bytes consumed, which add up to the size of
    the file.
    """
    with _open_file(path) as file:
        magic = file.read(4)
    if magic == _PARQUET:
        return _read_parquet(path, on_bytes_read)
    if read_head(path).lstrip(_WHITESPACE).startswith(b"["):
        return _read_json_array(path, on_bytes_read)
    return read_lines(path, on_bytes_read)


def read_head(path: Path) -> bytes:
    """Return the first `HEAD_BYTES` bytes of a file, decompressed, up to any damage."""
    content = b""
    with _open_file(path) as file, _decompress(file) as text:
        try:
            while len(content) < HEAD_BYTES and (block := text.read1(HEAD_BYTES)):
                content += block
        except _DAMAGE_ERRORS:
            pass  # Reported by the reader of the whole file, as a bad record at this place.
        except OSError as error:
            raise _read_error(path, error) from None
    return content[:HEAD_BYTES].removeprefix(_BOM)


def read_lines(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """Yield the lines of a plain or gzip text that are not blank, whatever their content."""
    name = str(path)
    for number, line, problem in read_numbered_lines(path, on_bytes_read):
        if problem is not None:
            yield BadRecord(name, number, problem)
        elif line.strip(_WHITESPACE):
            yield RawRecord(name, number, line)


def read_chunks(
    path: Path, target_bytes: int, on_bytes_read: ProgressCallback | None = None
) -> Iterator[RawItem]:
    """Yield a text in chunks of about `target_bytes` bytes that end between paragraphs.

    A chunk ends at the first blank line past `target_bytes`, at the first line end past 2 ×
    `target_bytes`, and within a line, between characters, only if the line alone is longer than
    `MAX_LINE_BYTES`.
    """
    parts: list[bytes] = []
    size = 0
    start = 1
    for number, line, problem in read_numbered_lines(path, on_bytes_read, split_long_lines=True):
        if problem is not None:
            if parts:
                yield RawRecord(str(path), start, b"".join(parts))
            yield BadRecord(str(path), number, problem)
            return
        is_full = size >= 2 * target_bytes or (size >= target_bytes and not line.strip(_WHITESPACE))
        if is_full:
            yield RawRecord(str(path), start, b"".join(parts))
            parts, size = [], 0
        if not parts:
            start = number
        parts.append(line)
        size += len(line)
    if any(part.strip(_WHITESPACE) for part in parts):
        yield RawRecord(str(path), start, b"".join(parts))


def _read_json_array(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    name = str(path)
    damage: list[str] = []
    with _open_file(path) as file, _decompress(file) as text:
        blocks = _iter_blocks(path, file, text, damage, on_bytes_read)
        for number, data, problem in JsonArrayReader(blocks, MAX_LINE_BYTES):
            if problem is None:
                yield RawRecord(name, number, data)
            else:
                yield BadRecord(name, number, "; ".join([problem, *damage]))


def _iter_blocks(
    path: Path,
    file: io.BufferedReader,
    text: io.BufferedIOBase,
    damage: list[str],
    on_bytes_read: ProgressCallback | None,
) -> Iterator[bytes]:
    """Yield the blocks of an open file up to its end or to damage, which is added to `damage`."""
    reported = 0
    mark = _BOM
    try:
        while block := text.read1(BLOCK_BYTES):
            yield block.removeprefix(mark)
            mark = b""
            if on_bytes_read is not None:
                on_bytes_read(file.tell() - reported)
                reported = file.tell()
    except _DAMAGE_ERRORS as error:
        damage.append(_damage_message(error))
    except OSError as error:
        raise _read_error(path, error) from None
    if on_bytes_read is not None:
        on_bytes_read(os.fstat(file.fileno()).st_size - reported)


def read_numbered_lines(
    path: Path, on_bytes_read: ProgressCallback | None, *, split_long_lines: bool = False
) -> Iterator[tuple[int, bytes, str | None]]:
    """Yield (line number, line, problem) of a plain or gzip text.

    A line longer than `MAX_LINE_BYTES` is a problem, or with `split_long_lines` comes in pieces.
    After damage in a compressed file nothing follows.
    """
    number = reported = 0
    with _open_file(path) as file, _decompress(file) as text:
        while True:
            try:
                line = text.readline(MAX_LINE_BYTES)
                number += 1
                if not line:
                    break
                if number == 1:
                    line = line.removeprefix(_BOM)
                if len(line) >= MAX_LINE_BYTES and not line.endswith(b"\n"):
                    if split_long_lines:
                        line = _complete_character(line, text)
                        # The next piece is of the same line.
                        number -= 1
                    else:
                        _skip_line(text)
                        yield number, b"", f"line is longer than {MAX_LINE_BYTES >> 20} MB"
                        continue
            except _DAMAGE_ERRORS as error:
                yield number + 1, b"", _damage_message(error)
                break
            except OSError as error:
                raise _read_error(path, error) from None
            yield number, line, None
            if on_bytes_read is not None and (position := file.tell()) - reported >= BLOCK_BYTES:
                on_bytes_read(position - reported)
                reported = position
        if on_bytes_read is not None:
            on_bytes_read(os.fstat(file.fileno()).st_size - reported)


def _skip_line(text: io.BufferedIOBase) -> None:
    while (rest := text.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _damage_message(error: Exception) -> str:
    return f"compressed data is damaged or cut short here ({error})"


def _read_error(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error.strerror or error}")


def _complete_character(line: bytes, text: io.BufferedIOBase) -> bytes:
    """Complete the last UTF-8 character of a line that was cut at the limit."""
    # The lead byte, the last one that is not 10xxxxxx, has the length of the character in its first
    # bits.
    num_bytes = next((count for count in range(1, 5) if line[-count] & 0xC0 != 0x80), 1)
    lead_byte = line[-num_bytes]
    length = 1
    for first_lead_byte, character_length in ((0xC0, 2), (0xE0, 3), (0xF0, 4)):
        if lead_byte >= first_lead_byte:
            length = character_length
    return line + text.read(max(length - num_bytes, 0))


def _open_file(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(path.open("rb", buffering=0), BLOCK_BYTES)
    except OSError as error:
        raise _read_error(path, error) from None


def _decompress(file: io.BufferedReader) -> io.BufferedIOBase:
    """Return a reader of the decompressed text; raises UserError for archives of other kinds."""
    magic = file.peek(8)[:8]
    for mark, kind in _ARCHIVE_MAGIC.items():
        if magic.startswith(mark):
            raise UserError(
                f"{file.name}: is a {kind} file: unpack it first (plain, gzip and parquet files "
                "are read)"
            )
    # Without another buffer around it: a buffer is filled before anything is returned, and loses
    # all text before damage.
    return gzip.GzipFile(fileobj=file) if magic.startswith(_GZIP) else file


def _read_parquet(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    import pyarrow
    import pyarrow.parquet

    name = str(path)
    size = path.stat().st_size
    row = reported = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS):
                for data, problem in _encode_rows(batch):
                    row += 1
                    if problem is None:
                        yield RawRecord(name, row, data)
                    else:
                        yield BadRecord(name, row, problem)
                if on_bytes_read is not None:
                    # Parquet is not read from beginning to end: bytes are counted in proportion to
                    # rows.
                    on_bytes_read(size * row // file.metadata.num_rows - reported)
                    reported = size * row // file.metadata.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not a whole parquet file: {reason}") from None


def _encode_rows(batch: Any) -> Iterator[tuple[bytes, str | None]]:
    """Yield (JSON, problem) for every row of a parquet batch."""
    import orjson

    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        # A value that Python cannot represent (text that is not UTF-8, the year 40000): convert the
        # rows one by one, so that only its own row is bad.
        rows = None
    for index in range(batch.num_rows):
        try:
            row = batch.slice(index, 1).to_pylist()[0] if rows is None else rows[index]
            yield orjson.dumps(row, default=encode_json_value), None
        except (ValueError, OverflowError, TypeError) as error:
            yield b"", f"this row cannot be read: {error}"


def encode_json_value(value: Any) -> Any:
    """Return a JSON value for a type that JSON lacks.

    Many writers store text as bytes, which become text; bytes that are not text become an object,
    never text.
    """
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}
