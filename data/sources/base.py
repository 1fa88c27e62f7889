"""What a source is: one dataset's native schema, and nothing of tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.readers.files import Advance, Raw, records
from data.records import BadRecord, Kind, Record, Unused

# Characters of a quarantined reason: a key that a reason names may be megabytes long.
REASON_LIMIT = 300


class BadRow(ValueError):
    """A record that does not fit the source's schema; the message is the reason that is quarantined."""


@dataclass(frozen=True, slots=True)
class Hub:
    """Where a dataset lies on the Hugging Face hub, as the arguments of `datasets.load_dataset`.

    With `files`, a pattern in which `{folder}` becomes the folder a configuration means, the native files are read
    line by line (for repositories whose tables `datasets` does not read by itself); without it the configuration is
    loaded by its name.
    """

    path: str
    config: str
    files: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset: `read` cuts native files into raw records, `parse` turns the bytes of one into what it means.

    `parse` raises `BadRow` for a record that is not of the schema. The two are apart so that one process can read
    while others parse. `kind` says what its records are: `Document`, `Conversation` or `Summary`.
    """

    name: str
    description: str
    parse: Callable[[bytes], Record | Unused]
    read: Callable[[Path, Advance | None], Iterator[Raw]] = records
    kind: Kind = "documents"
    hub: Hub | None = None

    def open(self, path: Path) -> Iterator[Record | Unused | BadRecord]:
        """The records of a native file, bad ones in their places."""
        for raw in self.read(path, None):
            yield self.decode(raw)

    def decode(self, raw: Raw) -> Record | Unused | BadRecord:
        """What a raw record says, or why it says nothing."""
        if isinstance(raw, BadRecord):
            return raw
        try:
            return self.parse(raw.data)
        except BadRow as error:
            return BadRecord(raw.file, raw.line, _one_line(str(error)))


def _one_line(reason: str) -> str:
    """A reason as one line to print, whatever keys or texts of the record it quotes: no line ends, no control codes."""
    shown = "".join(character if character.isprintable() else repr(character)[1:-1] for character in reason[:REASON_LIMIT])
    return shown + "…" if len(reason) > REASON_LIMIT else shown


def row_of(data: bytes) -> dict[str, Any]:
    """One JSON object. BadRow if the bytes are none."""
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise BadRow(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise BadRow(f"expected a JSON object, found {type(row).__name__}")
    return row


def text_of(row: dict[str, Any], field: str) -> str:
    """A field that must be there and be text. BadRow otherwise."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise BadRow(f"field {field!r} is {type(value).__name__}, not text")
    raise BadRow(f"there is no field {field!r}; there are: {', '.join(list(row)[:12]) or 'none'}")
