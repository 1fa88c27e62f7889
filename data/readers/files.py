"""Files → numbered raw records, in flat memory, whatever the files hold.

A raw record is the bytes of one record and where they stood: one line of a JSONL file, one element of a JSON list, one
row of a parquet file, one stretch of a plain text. What cannot be read becomes a `BadRecord` in its place, so that
records and bad records together always count what was there. Nothing here knows any dataset's schema.
"""

import glob
import io
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.json_array import Elements
from data.records import BadRecord

LINE_LIMIT = 1 << 26
BLOCK = 1 << 20
HEAD = 1 << 16
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_ARCHIVES = {b"PK\x03\x04": "zip", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
_SPACE = b" \t\r\n\v\f"
_DAMAGE = (EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """The bytes of one record; `line` is its first line, or its number in a list or a parquet file, counted from 1."""

    file: str
    line: int
    data: bytes


Raw = RawRecord | BadRecord
Advance = Callable[[int], object]


def expand(inputs: list[str]) -> list[Path]:
    """The files that inputs (files, folders, globs) name, in a stable order, none twice.

    Folders are walked whole, sorted, hidden names left out. UserError for an input that names no file.
    """
    found: dict[Path, None] = {}
    for text in inputs:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        paths = [Path(name) for name in matches]
        if not paths:
            wanted = "no file matches it" if glob.has_magic(text) else "there is no such file or folder"
            raise UserError(f"--input {text}: {wanted}")
        files = [file for path in paths for file in _files(path)]
        for file in files:
            if file.exists() and not file.is_file():
                raise UserError(f"--input {file}: is a pipe or a device, which cannot be read twice: save it as a file first")
        if not files:
            raise UserError(f"--input {text}: there are no files in it (hidden ones are left out)")
        found.update(dict.fromkeys(files))
    return list(found)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def records(path: Path, advance: Advance | None = None) -> Iterator[Raw]:
    """The records of a file: elements of one JSON list, lines of text (both plain or gzip), or rows of a parquet file.

    Rows are written as JSON. Blank lines are no records. `advance` is told of bytes of the file as they are consumed.
    """
    with _opened(path) as file:
        magic = file.read(4)
    if magic == _PARQUET:
        return _rows(path, advance)
    return _elements(path, advance) if head(path).lstrip(_SPACE)[:1] == b"[" else lines(path, advance)


def head(path: Path) -> bytes:
    """The first `HEAD` bytes of a plain or gzip file, unpacked, as far as they are undamaged."""
    found = b""
    with _opened(path) as file, _decompressed(file) as text:
        try:
            while len(found) < HEAD and (block := text.read1(HEAD)):
                found += block
        except _DAMAGE:
            pass  # Whoever reads on meets it in its place.
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    return found[:HEAD].removeprefix(_BOM)


def lines(path: Path, advance: Advance | None = None) -> Iterator[Raw]:
    """The lines of a plain or gzip text that are not blank, whatever they hold."""
    name = str(path)
    for number, line, problem in numbered(path, advance):
        if problem is not None:
            yield BadRecord(name, number, problem)
        elif line.strip(_SPACE):
            yield RawRecord(name, number, line)


def stretches(path: Path, bound: int, advance: Advance | None = None) -> Iterator[Raw]:
    """A plain or gzip text cut into stretches of about `bound` bytes, each ending between paragraphs if it can.

    A stretch ends at the first blank line past `bound`, at the first line end past 2 × `bound`, and inside a line
    (between characters) only where a line alone is longer than `LINE_LIMIT`.
    """
    parts: list[bytes] = []
    size, start = 0, 1
    for number, line, problem in numbered(path, advance, cut=True):
        if problem is not None:
            if parts:
                yield RawRecord(str(path), start, b"".join(parts))
            yield BadRecord(str(path), number, problem)
            return
        full = size >= 2 * bound or (size >= bound and not line.strip(_SPACE))
        if full:
            yield RawRecord(str(path), start, b"".join(parts))
            parts, size = [], 0
        if not parts:
            start = number
        parts.append(line)
        size += len(line)
    if any(part.strip(_SPACE) for part in parts):
        yield RawRecord(str(path), start, b"".join(parts))


def _elements(path: Path, advance: Advance | None) -> Iterator[Raw]:
    name, damage = str(path), ""
    with _opened(path) as file, _decompressed(file) as text:

        def blocks() -> Iterator[bytes]:
            nonlocal damage
            read, mark = 0, _BOM
            try:
                while block := text.read1(BLOCK):
                    yield block.removeprefix(mark)
                    mark = b""
                    if advance is not None:
                        advance(file.tell() - read)
                        read = file.tell()
            except _DAMAGE as error:
                damage = f"; {_damaged(error)}"
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            if advance is not None:
                advance(os.fstat(file.fileno()).st_size - read)

        for number, data, problem in Elements(blocks(), LINE_LIMIT):
            yield RawRecord(name, number, data) if problem is None else BadRecord(name, number, problem + damage)


def numbered(path: Path, advance: Advance | None, *, cut: bool = False) -> Iterator[tuple[int, bytes, str | None]]:
    """(line number, line, what is wrong with it); a line over the limit is wrong as a whole, or is `cut` in pieces."""
    number = 0
    with _opened(path) as file, _decompressed(file) as text:
        read = 0
        while True:
            try:
                line = text.readline(LINE_LIMIT)
                number += 1
                if not line:
                    break
                if number == 1:
                    line = line.removeprefix(_BOM)
                if len(line) >= LINE_LIMIT and not line.endswith(b"\n"):
                    if cut:
                        line = _whole_characters(line, text)
                        number -= 1
                    else:
                        while (rest := text.readline(BLOCK)) and not rest.endswith(b"\n"):
                            pass
                        yield number, b"", f"line is longer than {LINE_LIMIT >> 20} MB"
                        continue
            except _DAMAGE as error:
                yield number + 1, b"", _damaged(error)
                break
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
            yield number, line, None
            if advance is not None and (position := file.tell()) - read >= BLOCK:
                advance(position - read)
                read = position
        if advance is not None:
            advance(os.fstat(file.fileno()).st_size - read)


def _damaged(error: Exception) -> str:
    return f"compressed data is damaged or cut short here ({error})"


def _whole_characters(line: bytes, text: io.BufferedIOBase) -> bytes:
    """Complete the last UTF-8 character of a line that was cut by the limit."""
    lead = next((back for back in range(1, 5) if line[-back] & 0xC0 != 0x80), 1)
    byte = line[-lead]
    length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
    return line + text.read(max(length - lead, 0))


def _opened(path: Path) -> io.BufferedReader:
    try:
        return io.BufferedReader(path.open("rb", buffering=0), BLOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def _decompressed(file: io.BufferedReader) -> io.BufferedIOBase:
    magic = file.peek(8)[:8]
    for mark, kind in _ARCHIVES.items():
        if magic.startswith(mark):
            raise UserError(f"{file.name}: is a {kind} file: unpack it first (plain, gzip and parquet files are read)")
    if magic.startswith(_GZIP):
        return io.BufferedReader(_Gunzip(file), BLOCK >> 3)
    return file


class _Gunzip(io.RawIOBase):
    """The text of a gzip file of one or more members; damage is raised only after all that came before it was read."""

    # gzip.GzipFile fills a reader's whole buffer before it returns, and loses it all where the file is cut short.

    def __init__(self, file: io.BufferedReader) -> None:
        self._file, self._member = file, zlib.decompressobj(wbits=31)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._member.eof:
                packed = (self._member.unused_data or self._file.read(BLOCK >> 2)).lstrip(b"\0")
                if not packed:
                    return 0
                self._member = zlib.decompressobj(wbits=31)
            elif not (packed := self._member.unconsumed_tail or self._file.read(BLOCK >> 2)):
                raise EOFError("the file ends inside its compressed stream")
            text = self._member.decompress(packed, len(buffer))
            if text:
                buffer[: len(text)] = text
                return len(text)


def _rows(path: Path, advance: Advance | None) -> Iterator[Raw]:
    import pyarrow
    import pyarrow.parquet

    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            total, row, told = file.metadata.num_rows, 0, 0
            for batch in file.iter_batches(batch_size=256):
                for data, problem in _json_rows(batch):
                    row += 1
                    yield RawRecord(str(path), row, data) if problem is None else BadRecord(str(path), row, problem)
                if advance is not None:
                    advance(size * row // total - told)
                    told = size * row // total
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: is not a whole parquet file: {' '.join(str(error).split())[:200]}") from None


def _json_rows(batch: Any) -> Iterator[tuple[bytes, str | None]]:
    """Each row of a parquet batch as JSON, or what is wrong with it."""
    import orjson

    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = None  # one value that Python cannot hold (text that is no UTF-8, the year 40000) costs its own row alone
    for index in range(batch.num_rows):
        try:
            row = batch.slice(index, 1).to_pylist()[0] if rows is None else rows[index]
            yield orjson.dumps(row, default=json_value), None
        except (ValueError, OverflowError, TypeError) as error:
            yield b"", f"this row cannot be read: {error}"


def json_value(value: Any) -> Any:
    """What JSON has no type for: many writers mark text as bytes, and bytes that are none must not pass for text."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}
