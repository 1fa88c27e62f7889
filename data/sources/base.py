"""What a source is: one dataset's native schema, and nothing of tokens."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.readers.files import ProgressCallback, RawItem, read_records
from data.records import BadRecord, Record, SkippedRecord

# Characters of a quarantined reason: a key that a reason names may be megabytes long.
MAX_REASON_CHARACTERS = 300


class SchemaError(ValueError):
    """A record that does not fit the source's schema; the message is the reason that is quarantined."""


@dataclass(frozen=True, slots=True)
class HubDataset:
    """Where a dataset lies on the Hugging Face hub, as the arguments of `datasets.load_dataset`.

    With `data_files`, a pattern in which `{folder}` becomes the folder a configuration means, the native files are read
    line by line (for repositories whose tables `datasets` does not read by itself); without it the configuration is
    loaded by its name.
    """

    path: str
    config: str
    data_files: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset: `read` cuts native files into raw records, `parse` turns the bytes of one into what it means.

    `parse` raises `BadRow` for a record that is not of the schema. The two are apart so that one process can read
    while others parse. `kind` names the kind of its records, a module of `data.kinds`.
    """

    name: str
    description: str
    parse: Callable[[bytes], Record | SkippedRecord]
    read: Callable[[Path, ProgressCallback | None], Iterator[RawItem]] = read_records
    kind: str = "documents"
    hub: HubDataset | None = None

    def iter_records(self, path: Path) -> Iterator[Record | SkippedRecord | BadRecord]:
        """The records of a native file, bad ones in their places."""
        for raw in self.read(path, None):
            yield self.try_parse(raw)

    def try_parse(self, raw: RawItem) -> Record | SkippedRecord | BadRecord:
        """What a raw record says, or why it says nothing."""
        if isinstance(raw, BadRecord):
            return raw
        try:
            return self.parse(raw.data)
        except SchemaError as error:
            return BadRecord(raw.file, raw.line, _printable_reason(str(error)))


def _printable_reason(reason: str) -> str:
    """A reason as one line to print, whatever keys or texts of the record it quotes: no line ends, no control codes."""
    shown = "".join(
        character if character.isprintable() else repr(character)[1:-1]
        for character in reason[:MAX_REASON_CHARACTERS]
    )
    return shown + "…" if len(reason) > MAX_REASON_CHARACTERS else shown


def parse_json_object(data: bytes) -> dict[str, Any]:
    """One JSON object. BadRow if the bytes are none."""
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SchemaError(f"not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise SchemaError(f"expected a JSON object, found {type(row).__name__}")
    return row


def require_text(row: dict[str, Any], field: str) -> str:
    """A field that must be there and be text. BadRow otherwise."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise SchemaError(f"field {field!r} is {type(value).__name__}, not text")
    raise SchemaError(
        f"there is no field {field!r}; there are: {', '.join(list(row)[:12]) or 'none'}"
    )
