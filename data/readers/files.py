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
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.json_array import JsonArrayReader, JsonLayout, find_layout
from data.records import BadRecord

MAX_LINE_BYTES = 1 << 26
BLOCK_BYTES = 1 << 20
HEAD_BYTES = 1 << 16
PARQUET_BATCH_ROWS = 256
PLAIN_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
# What a folder cloned from a hub has beside its data: documents about it, its metadata, scripts and
# pictures. Records are not about data, whatever their name: `license_questions.jsonl`.
_ABOUT_DATA = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|citation|changelog|contribut(ing|ors)"
    r"|code_of_conduct|requirements)"
    r"([._-](?!.*(jsonl?|parquet|[ct]sv)(\.gz)?\Z).*)?"
    r"|(dataset_infos?|dataset_dict|state|config|configuration|croissant|metadata)\.json"
    r"|(md5|sha\d+)sums?(\.txt)?",
    re.IGNORECASE,
)
_ABOUT_DATA_SUFFIXES = frozenset(
    {".md", ".rst", ".py", ".ipynb", ".sh", ".yaml", ".yml", ".toml", ".cff", ".bib", ".pdf"}
    | {".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp"}
)
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_ARCHIVE_MAGIC = {
    b"PK\x03\x04": "zip",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf": "7z",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
}
# What a clone without Git LFS has in the place of a large file.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_WHITESPACE = b" \t\r\n\v\f"
# How a compressed file that is damaged or cut short fails. BadGzipFile is an OSError: these are
# caught before OSError.
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

    Folders are walked recursively, in sorted order; hidden names are left out, and so are the files
    that `print_files_about_data` names. Raises UserError for an input without files.
    """
    # A dictionary rather than a set: it keeps the order.
    unique_files: dict[Path, None] = {}
    for input_ in inputs:
        files = []
        for match in _match_input(input_):
            in_match = list(_walk_files(match))
            about_data = set(_select_about_data(in_match))
            files += [file for file in in_match if file not in about_data]
        for file in files:
            if file.exists() and not file.is_file():
                raise UserError(
                    f"{file}: is a pipe or a device, which cannot be read twice: save it as a file "
                    "first"
                )
        if not files:
            raise UserError(f"{input_}: there are no files in it (hidden ones are left out)")
        unique_files.update(dict.fromkeys(files))
    return list(unique_files)


def print_files_about_data(inputs: list[str]) -> None:
    """Print one line that names the files which `expand_inputs` leaves out of folders, if any.

    These are documents about the data, its metadata, scripts and pictures. In a folder without any
    other file they are read themselves.
    """
    names = [
        str(file.relative_to(folder))
        for input_ in inputs
        for folder in _match_input(input_)
        for file in _select_about_data(list(_walk_files(folder)))
    ]
    if names:
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        print(
            f"left out beside the data: {', '.join(names[:5])}{more} (to read a file like these, "
            "name the file itself)",
            flush=True,
        )


def _match_input(input_: str) -> list[Path]:
    """Return the existing paths that an input means. Raises UserError if there is none."""
    # An existing name is not a pattern, whatever brackets it has.
    matches = [input_] if os.path.lexists(input_) else sorted(glob.glob(input_, recursive=True))
    if not matches:
        problem = "there is no such file or folder"
        if glob.has_magic(input_):
            problem = "no file matches it"
        raise UserError(f"--input {input_}: {problem}")
    return list(map(Path, matches))


def _select_about_data(files: list[Path]) -> list[Path]:
    """Return those files of a folder that are about its data, or none if all of them are.

    A file that is named itself is the only one, so it is read.

    Notes in Markdown alone are data, but not the README, the license and the pictures beside them.
    """
    by_name = {file for file in files if _ABOUT_DATA.fullmatch(file.name)}
    by_suffix = {file for file in files if file.suffix.lower() in _ABOUT_DATA_SUFFIXES}
    notes = {file for file in by_suffix if file.suffix.lower() == ".md"}
    for about_data in (by_name | by_suffix, by_name | (by_suffix - notes), by_name):
        if len(about_data) < len(files):
            return [file for file in files if file in about_data]
    return []


def has_text_suffix(path: Path) -> bool:
    """Return whether the name of a file, without `.gz`, ends like one of plain text."""
    return Path(path.name.removesuffix(".gz")).suffix.lower() in PLAIN_TEXT_SUFFIXES


def _walk_files(path: Path) -> Iterator[Path]:
    """Yield a file itself, or the files below a folder in sorted order without hidden ones."""
    if not path.is_dir():
        yield path
        return
    for folder, subfolders, file_names in os.walk(path):
        # os.walk goes on into whatever this list holds afterwards, in its order.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(file_names) if not name.startswith("."))


def read_records(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """Yield the elements of a JSON list, the lines of a text, or the rows of a parquet file.

    The list may be in an object under a name such as `data`. Objects that go over several lines are
    read as such. Lists and texts may be compressed with gzip. Rows are encoded as JSON. Blank lines
    are not records. `on_bytes_read` is called with the number of bytes read since its last call;
    the numbers add up to the size of the file.
    """
    with _open_file(path) as file:
        magic = file.read(4)
    if magic == _PARQUET:
        return _read_parquet(path, on_bytes_read)
    layout = find_layout(read_head(path))
    if layout is not None:
        return _read_json_array(path, on_bytes_read, *layout)
    return read_lines(path, on_bytes_read)


def read_head(path: Path) -> bytes:
    """Return the first `HEAD_BYTES` bytes of a file, decompressed, or fewer if it is damaged.

    A byte order mark is left out. Raises UserError if the file cannot be read.
    """
    content = b""
    with _open_file(path) as file, _decompress(file) as stream:
        try:
            # read1 returns what it has before damage is met; read would lose it.
            while len(content) < HEAD_BYTES and (block := stream.read1(HEAD_BYTES)):
                content += block
        except _DAMAGE_ERRORS:
            pass  # Reported by the reader of the whole file, as a bad record at this place.
        except OSError as error:
            raise _read_error(path, error) from None
    return content[:HEAD_BYTES].removeprefix(_BOM)


def read_lines(path: Path, on_bytes_read: ProgressCallback | None = None) -> Iterator[RawItem]:
    """Yield the lines of a plain or gzip text that are not blank, unparsed.

    A line that cannot be read becomes a BadRecord.
    """
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

    A chunk ends before the first blank line after `target_bytes` or, if none comes, at the first
    line end after 2 × `target_bytes`. Only a line longer than `MAX_LINE_BYTES` is split, and never
    within a character.
    """
    lines: list[bytes] = []
    num_bytes = 0
    first_line = 1
    for number, line, problem in read_numbered_lines(path, on_bytes_read, split_long_lines=True):
        if problem is not None:
            # Corrupt compressed data: the text before it is kept, and nothing follows.
            if lines:
                yield RawRecord(str(path), first_line, b"".join(lines))
            yield BadRecord(str(path), number, problem)
            return
        is_blank = not line.strip(_WHITESPACE)
        if num_bytes >= 2 * target_bytes or (num_bytes >= target_bytes and is_blank):
            yield RawRecord(str(path), first_line, b"".join(lines))
            lines, num_bytes = [], 0
        if not lines:
            first_line = number
        lines.append(line)
        num_bytes += len(line)
    if any(line.strip(_WHITESPACE) for line in lines):
        yield RawRecord(str(path), first_line, b"".join(lines))


def _read_json_array(
    path: Path, on_bytes_read: ProgressCallback | None, layout: JsonLayout, num_skipped: int
) -> Iterator[RawItem]:
    """Yield the elements of plain or gzip JSON; a faulty element becomes a BadRecord.

    `layout` is that of the text after the first `num_skipped` bytes, which are not read.
    """
    name = str(path)
    # Messages of `_iter_blocks`. Damage ends the text, so the reader reports an unfinished list
    # next, and its problem gets the message.
    damage: list[str] = []
    with _open_file(path) as file, _decompress(file) as stream:
        blocks = _iter_blocks(path, file, stream, damage, on_bytes_read)
        blocks = _skip_bytes(blocks, num_skipped)
        for number, data, problem in JsonArrayReader(blocks, MAX_LINE_BYTES, layout):
            if problem is None:
                yield RawRecord(name, number, data)
            else:
                yield BadRecord(name, number, "; ".join([problem, *damage]))


def _skip_bytes(blocks: Iterator[bytes], num_skipped: int) -> Iterator[bytes]:
    """Yield blocks without their first `num_skipped` bytes."""
    for block in blocks:
        yield block[num_skipped:]
        num_skipped = max(num_skipped - len(block), 0)


def _iter_blocks(
    path: Path,
    file: io.BufferedReader,
    stream: io.BufferedIOBase,
    damage: list[str],
    on_bytes_read: ProgressCallback | None,
) -> Iterator[bytes]:
    """Yield the blocks of an open file up to its end or to damage, which is added to `damage`.

    `stream` is the decompressed content of `file`, whose position measures the progress.
    """
    reported_bytes = 0
    # Only the first block can begin with a byte order mark.
    prefix = _BOM
    try:
        while block := stream.read1(BLOCK_BYTES):
            yield block.removeprefix(prefix)
            prefix = b""
            if on_bytes_read is not None:
                on_bytes_read(file.tell() - reported_bytes)
                reported_bytes = file.tell()
    except _DAMAGE_ERRORS as error:
        damage.append(_damage_message(error))
    except OSError as error:
        raise _read_error(path, error) from None
    if on_bytes_read is not None:
        # After damage the rest of the file is unread: it counts as done all the same.
        on_bytes_read(os.fstat(file.fileno()).st_size - reported_bytes)


def read_numbered_lines(
    path: Path, on_bytes_read: ProgressCallback | None, *, split_long_lines: bool = False
) -> Iterator[tuple[int, bytes, str | None]]:
    """Yield (line number, line, problem) of a plain or gzip text; the numbers count from 1.

    The problem is None, or else the line is empty. A line longer than `MAX_LINE_BYTES` is a
    problem, or with `split_long_lines` is yielded in parts under the same number. Corrupt
    compressed data is yielded as one problem, and reading stops there. Raises UserError if the file
    cannot be read.
    """
    number = reported_bytes = 0
    at_line_start = True
    with _open_file(path) as file, _decompress(file) as stream:
        while True:
            try:
                line = stream.readline(MAX_LINE_BYTES)
                if not line:
                    break
                is_continuation = not at_line_start
                at_line_start = len(line) < MAX_LINE_BYTES or line.endswith(b"\n")
                if not is_continuation:
                    number += 1
                    if number == 1:
                        line = line.removeprefix(_BOM)
                if not at_line_start:
                    if split_long_lines:
                        line = _complete_character(line, stream)
                    else:
                        _skip_line(stream)
                        at_line_start = True
                        yield number, b"", f"line is longer than {MAX_LINE_BYTES >> 20} MB"
                        continue
            except _DAMAGE_ERRORS as error:
                yield number + 1 if at_line_start else number, b"", _damage_message(error)
                break
            except OSError as error:
                raise _read_error(path, error) from None
            yield number, line, None
            if on_bytes_read is not None:
                # Once per block: a call for every line would slow the reading down.
                new_bytes = file.tell() - reported_bytes
                if new_bytes >= BLOCK_BYTES:
                    on_bytes_read(new_bytes)
                    reported_bytes += new_bytes
        if on_bytes_read is not None:
            # After damage the rest of the file is unread: it counts as done all the same.
            on_bytes_read(os.fstat(file.fileno()).st_size - reported_bytes)


def _skip_line(stream: io.BufferedIOBase) -> None:
    """Read to the end of the line, a block at a time so that a line of any length fits memory."""
    while (rest := stream.readline(BLOCK_BYTES)) and not rest.endswith(b"\n"):
        pass


def _damage_message(error: Exception) -> str:
    return f"compressed data is damaged or cut short here ({error})"


def _read_error(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be read: {error.strerror or error}")


def _complete_character(line: bytes, stream: io.BufferedIOBase) -> bytes:
    """Return a line that was cut after any byte, with the rest of its last UTF-8 character.

    The rest is read from `stream`.
    """
    # Bytes of the last character that are there: back to its lead byte, the last byte that is not a
    # continuation byte (10xxxxxx).
    num_present = next((count for count in range(1, 5) if line[-count] & 0xC0 != 0x80), 1)
    lead_byte = line[-num_present]
    # The first bits of the lead byte say how many bytes the character has: 110xxxxx two, 1110xxxx
    # three, 11110xxx four.
    character_length = 1
    for smallest_lead_byte, length in ((0xC0, 2), (0xE0, 3), (0xF0, 4)):
        if lead_byte >= smallest_lead_byte:
            character_length = length
    return line + stream.read(max(character_length - num_present, 0))


def _open_file(path: Path) -> io.BufferedReader:
    """Open a file for reading in blocks of `BLOCK_BYTES`. Raises UserError if that fails."""
    try:
        return io.BufferedReader(path.open("rb", buffering=0), BLOCK_BYTES)
    except OSError as error:
        raise _read_error(path, error) from None


def _decompress(file: io.BufferedReader) -> io.BufferedIOBase:
    """Return a stream of the decompressed content, the file itself if it is not compressed.

    Raises UserError for archives of other kinds than gzip, and for pointers of Git LFS.
    """
    magic = file.peek(8)
    if magic.startswith(_LFS_POINTER):
        raise UserError(
            f"{file.name}: is a pointer of Git LFS, not the data itself: get the data with git lfs "
            "pull in its folder"
        )
    for archive_magic, archive_kind in _ARCHIVE_MAGIC.items():
        if magic.startswith(archive_magic):
            raise UserError(
                f"{file.name}: is a {archive_kind} file: unpack it first (plain, gzip and parquet "
                "files are read)"
            )
    # Without another buffer around it: a buffer is filled before anything is returned, and loses
    # all text before damage.
    return gzip.GzipFile(fileobj=file) if magic.startswith(_GZIP) else file


def _read_parquet(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield the rows of a parquet file as JSON; a row that cannot be read becomes a BadRecord.

    Raises UserError if the file is damaged or cut short.
    """
    # Imported here: pyarrow takes long to load, and few inputs are parquet files.
    import pyarrow
    import pyarrow.parquet

    name = str(path)
    file_size = path.stat().st_size
    row = reported_bytes = 0
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
                    bytes_read = file_size * row // file.metadata.num_rows
                    on_bytes_read(bytes_read - reported_bytes)
                    reported_bytes = bytes_read
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: is not a whole parquet file: {reason}") from None


def _encode_rows(batch: Any) -> Iterator[tuple[bytes, str | None]]:
    """Yield (JSON, None), or (b"", problem), for every row of a `pyarrow.RecordBatch`."""
    import orjson

    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        # A value that Python cannot represent (text that is not UTF-8, the year 40000): convert the
        # rows one by one, so that only its own row is bad.
        rows = None
    for index in range(batch.num_rows):
        try:
            row = rows[index] if rows is not None else batch.slice(index, 1).to_pylist()[0]
            yield orjson.dumps(row, default=encode_json_value), None
        except (ValueError, OverflowError, TypeError) as error:
            yield b"", f"this row cannot be read: {error}"


def encode_json_value(value: Any) -> Any:
    """Return a JSON value for a type that JSON lacks, as the `default` of `orjson.dumps`.

    Bytes become text, because many writers store text as bytes; bytes that are not UTF-8 become an
    object, which no source takes for text. Any other value becomes its `str`.
    """
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"bytes": len(value)}
