"""Plain text: one file is one document."""

from collections.abc import Iterator
from pathlib import Path

from data.readers.encoding import describe_encoding
from data.readers.files import ProgressCallback, RawItem, has_text_suffix, read_chunks
from data.records import Document
from data.sources.base import SchemaError, Source

# About a million Chinese characters.
CHUNK_BYTES = 3 << 20


def read_text_file(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield a file as one record, or a file larger than `CHUNK_BYTES` as several.

    A large file is split at blank lines, so that no book is one string in memory.
    """
    return read_chunks(path, CHUNK_BYTES, on_bytes_read)


def parse_text(data: bytes) -> Document:
    """Return the text of a chunk. Raises SchemaError if it is not UTF-8."""
    try:
        return Document(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SchemaError(f"line {line} of this text: {describe_encoding(data)}") from None


def _is_text_file(path: Path, _file_head: bytes) -> bool:
    """Return whether the name of a file ends as that of a plain text does."""
    return has_text_suffix(path)


SOURCES = (
    Source(
        name="text",
        description="plain UTF-8 text; a file is one document (past a million characters it is cut "
        "at blank lines)",
        parse=parse_text,
        read=read_text_file,
        recognizes_file=_is_text_file,
    ),
)
