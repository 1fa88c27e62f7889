"""Files → numbered raw records, in flat memory, whatever the files hold.

A raw record is the bytes of one record and where they stood: one line of a JSONL file, one element of a JSON list, one
row of a parquet file, one stretch of a plain text. What cannot be read becomes a `BadRecord` in its place, so that
records and bad records together always count what was there. Nothing here knows any dataset's schema.
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
_DAMAGE_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """The bytes of one record; `line` is its first line, or its number in a list or a parquet file, counted from 1."""

    file: str
    line: int
    data: bytes


RawItem = RawRecord | BadRecord
ProgressCallback = Callable[[int], object]


def expand_inputs(inputs: list[str]) -> list[Path]:
    """The files that inputs (files, folders, globs) name, in a stable order, none twice.

    Folders are walked whole, sorted, hidden names left out. UserError for an input that names no file.
    """
    unique_files: dict[Path, None] = {}
    for text in inputs:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        paths = [Path(name) for name in matches]
        if not paths:
            problem = (
                "no file matches it" if glob.has_magic(text) else "there is no such file or folder"
            )
            raise UserError(f"--input {text}: {problem}")
        files = [file for path in paths for file in _walk_files(path)]
        for file in files:
            if file.exists() and not file.is_file():
                raise UserError(
                    f"--input {file}: is a pipe or a device, which cannot be read twice: save it as a file first"
                )
        if not files:
            raise UserError(f"--input {text}: there are no files in it (hidden ones are left out)")
        unique_files.update(dict.fromkeys(files))
    return list(unique_files)


def has_text_suffix(path: Path) -> bool:
    """Return whether a file is plain text by its name, `.gz` disregarded."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in PLAIN_TEXT_SUFFIXES


def _walk_files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def read_records(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """The records of a file: elements of one JSON list, lines of text (both plain or gzip), or rows of a parquet file.

    Rows are written as JSON. Blank lines are no records. `on_bytes_read` is told of bytes of the file as they are consumed.
    """
    with _open_file(path) as file:
        magic = file.read(4)
    if magic == _PARQUET:
        return _read_parquet(path, on_bytes_read)
    return (
        _read_json_array(path, on_bytes_read)
        if read_head(path).lstrip(_WHITESPACE)[:1] == b"["
        else read_lines(path, on_bytes_read)
    )


def read_head(path: Path) -> bytes:
    """The first `HEAD` bytes of a plain or gzip file, unpacked, as far as they are undamaged."""
    content = b""
    with _open_file(path) as file, _decompress(file) as text:
        try:
            while len(content) < HEAD_BYTES and (block := text.read1(HEAD_BYTES)):
                content += block
        except _DAMAGE_ERRORS:
            pass  # Whoever reads on meets it in its place.
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return content[:HEAD_BYTES].removeprefix(_BOM)


def read_lines(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """The lines of a plain or gzip text that are not blank, whatever they hold."""
    name = str(path)
    for number, line, problem in read_numbered_lines(path, on_bytes_read):
        if problem is not None:
            yield BadRecord(name, number, problem)
        elif line.strip(_WHITESPACE):
            yield RawRecord(name, number, line)


def read_chunks(
    path: Path, target_bytes: int, on_bytes_read: ProgressCallback | None = None
) -> Iterator[RawItem]:
    """A plain or gzip text cut into stretches of about `target_bytes` bytes, each ending between paragraphs if it can.

    A stretch ends at the first blank line past `target_bytes`, at the first line end past 2 × `target_bytes`, and inside a line
    (between characters) only where a line alone is longer than `LINE_LIMIT`.
    """
    parts: list[bytes] = []
    size, start = 0, 1
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
    name, damage = str(path), ""
    with _open_file(path) as file, _decompress(file) as text:

        def blocks() -> Iterator[bytes]:
            nonlocal damage
            read, mark = 0, _BOM
            try:
                while block := text.read1(BLOCK_BYTES):
                    yield block.removeprefix(mark)
                    mark = b""
                    if on_bytes_read is not None:
                        on_bytes_read(file.tell() - read)
                        read = file.tell()
            except _DAMAGE_ERRORS as error:
                damage = f"; {_damage_message(error)}"
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            if on_bytes_read is not None:
                on_bytes_read(os.fstat(file.fileno()).st_size - read)

        for number, data, problem in JsonArrayReader(blocks(), MAX_LINE_BYTES):
            yield (
                RawRecord(name, number, data)
                if problem is None
                else BadRecord(name, number, problem + damage)
            )


def read_numbered_lines(
    path: Path, on_bytes_read: ProgressCallback | None, *, split_long_lines: bool = False
) -> Iterator[tuple[int, bytes, str | None]]:
    """(line number, line, what is wrong with it); a line over the limit is wrong as a whole, or is `split_long_lines` in pieces."""
    number = 0
    with _open_file(path) as file, _decompress(file) as text:
        read = 0
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
                        number -= 1
                    else:
                        while (rest := text.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
                            pass
                        yield number, b"", f"line is longer than {MAX_LINE_BYTES >> 20} MB"
                        continue
            except _DAMAGE_ERRORS as error:
                yield number + 1, b"", _damage_message(error)
                break
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            yield number, line, None
            if on_bytes_read is not None and (position := file.tell()) - read >= BLOCK_BYTES:
                on_bytes_read(position - read)
                read = position
        if on_bytes_read is not None:
            on_bytes_read(os.fstat(file.fileno()).st_size - read)


def _damage_message(error: Exception) -> str:
    return f"compressed data is damaged or cut short here ({error})"


def _complete_character(line: bytes, text: io.BufferedIOBase) -> bytes:
    """Complete the last UTF-8 character of a line that was cut by the limit."""
    lead = next((back for back in range(1, 5) if line[-back] & 0xC0 != 0x80), 1)
    byte = line[-lead]
    length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
    return line + text.read(max(length - lead, 0))


def _open_file(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(path.open("rb", buffering=0), BLOCK_BYTES)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _decompress(file: io.BufferedReader) -> io.BufferedIOBase:
    magic = file.peek(8)[:8]
    for mark, kind in _ARCHIVE_MAGIC.items():
        if magic.startswith(mark):
            raise UserError(
                f"{file.name}: is a {kind} file: unpack it first (plain, gzip and parquet files are read)"
            )
    if magic.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    return file


def _read_parquet(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            total, row, reported = file.metadata.num_rows, 0, 0
            for batch in file.iter_batches(batch_size=256):
                for data, problem in _encode_rows(batch):
                    row += 1
                    yield (
                        RawRecord(str(path), row, data)
                        if problem is None
                        else BadRecord(str(path), row, problem)
                    )
                if on_bytes_read is not None:
                    on_bytes_read(size * row // total - reported)
                    reported = size * row // total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: is not a whole parquet file: {' '.join(str(error).split())[:200]}"
        ) from None


def _encode_rows(batch: Any) -> Iterator[tuple[bytes, str | None]]:
    """Each row of a parquet batch as JSON, or what is wrong with it."""
    import orjson

    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = None  # one value that Python cannot hold (text that is no UTF-8, the year 40000) costs its own row alone
    for index in range(batch.num_rows):
        try:
            row = batch.slice(index, 1).to_pylist()[0] if rows is None else rows[index]
            yield orjson.dumps(row, default=encode_json_value), None
        except (ValueError, OverflowError, TypeError) as error:
            yield b"", f"this row cannot be read: {error}"


def encode_json_value(value: Any) -> Any:
    """What JSON has no type for: many writers mark text as bytes, and bytes that are none must not pass for text."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}
