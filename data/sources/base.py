"""`Source`: how the native files of one dataset are read and parsed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.encoding import describe_encoding, is_utf8
from data.readers.files import ProgressCallback, RawItem, read_records
from data.readers.hub import HubDataset
from data.records import BadRecord, Record, SkippedRecord

# A reason may quote a key of the record, and keys may be megabytes long.
MAX_REASON_CHARACTERS = 300


class SchemaError(ValueError):
    """A record that does not fit its source's schema; the message goes into the quarantine."""


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset.

    `read` splits a native file into raw records; `parse` turns the bytes of one raw record into a
    record of the kind named `kind` (a module of `data.kinds`) and raises SchemaError if they do not
    fit the schema. They are separate so that one process can read while others parse.

    `has_passages` says that its conversations are about a reference passage, so that
    `evaluate.reading` can ask with the right passage and with another one.

    The last three fields let `data.corpora.detect` recognize raw files. `keys` are sets of keys: a
    JSON record that has all keys of one of them belongs to the source. `recognizes` is a further
    test for sources that share their keys with another (first record, whether the file is a JSON
    list). `recognizes_file` is for formats other than JSON (path, first bytes).
    """

    name: str
    description: str
    parse: Callable[[bytes], Record | SkippedRecord]
    read: Callable[[Path, ProgressCallback | None], Iterator[RawItem]] = read_records
    kind: str = "documents"
    has_passages: bool = False
    hub: HubDataset | None = None
    keys: tuple[frozenset[str], ...] = ()
    recognizes: Callable[[dict[str, Any], bool], bool] | None = None
    recognizes_file: Callable[[Path, bytes], bool] | None = None

    def iter_records(self, path: Path) -> Iterator[Record | SkippedRecord | BadRecord]:
        """Yield the records of a native file, with a BadRecord for each that cannot be read."""
        for raw in self.read(path, None):
            yield self.try_parse(raw)

    def try_parse(self, raw: RawItem) -> Record | SkippedRecord | BadRecord:
        """Parse a raw record; return a BadRecord if it does not fit the schema."""
        if isinstance(raw, BadRecord):
            return raw
        try:
            return self.parse(raw.data)
        except SchemaError as error:
            return BadRecord(raw.file, raw.line, _printable_reason(str(error)))

    def require_hub(self, hub_input: str) -> HubDataset:
        """Return the dataset on the Hugging Face hub. Raises UserError if the source has none.

        `hub_input` is the value of --input or --dev that names the hub, for the message.
        """
        if self.hub is None:
            raise UserError(
                f"--input {hub_input}: the source {self.name} is not on the hub; give its files"
            )
        return self.hub


def _printable_reason(reason: str) -> str:
    """Return the first `MAX_REASON_CHARACTERS` characters of a reason as one line.

    Line ends and control characters, which quoted text may have, are escaped; this may make the
    line longer. A longer reason ends with "…".
    """
    characters = [
        character if character.isprintable() else repr(character)[1:-1]
        for character in reason[:MAX_REASON_CHARACTERS]
    ]
    ellipsis = "…" if len(reason) > MAX_REASON_CHARACTERS else ""
    return "".join(characters) + ellipsis


def parse_json_object(data: bytes) -> dict[str, Any]:
    """Parse one JSON object; NaN, as pandas writes a missing value, is null.

    Raises SchemaError with the likely remedy if the bytes are anything else.
    """
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        row = _parse_with_any_number(data)
        if row is None:
            raise SchemaError(_describe_json_error(data, error)) from None
    if not isinstance(row, dict):
        raise SchemaError(f"expected a JSON object, not {type(row).__name__}")
    return row


def _parse_with_any_number(data: bytes) -> Any:
    """Parse JSON that has a number which orjson refuses, such as NaN or 1e400.

    Return None for bytes that are not JSON for another reason, half characters included.
    """
    try:
        row = json.loads(data.decode("utf-8"), parse_constant=_parse_constant, parse_int=_parse_int)
        # Unlike orjson, json reads half of a surrogate pair; it cannot be encoded again.
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return row


def _parse_constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _parse_int(digits: str) -> float:
    """Return an int or, beyond 64 bits, a float, as orjson does."""
    return int(digits) if len(digits) < 20 else float(digits)


def _describe_json_error(data: bytes, error: Exception) -> str:
    """Return why bytes are not JSON, with the remedy where the cause is a common one."""
    if not is_utf8(data):
        return describe_encoding(data)
    hint = ""
    text = data.strip()
    if text.startswith(b"{") and text.endswith(b"},"):
        hint = "; there is a comma after the object: remove it (a line is one object, without one)"
    elif text.startswith((b"{'", b"[{'")):
        hint = "; this is Python's notation: write it with json.dumps"
    return f"not valid JSON: {error}{hint}"


def require_text(row: dict[str, Any], field: str) -> str:
    """Return a text field. Raises SchemaError if it is missing or not text."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if field in row:
        raise SchemaError(f"field {field!r} is {type(value).__name__}, not text")
    raise SchemaError(f"there is no field {field!r}; there are: {list_keys(row)}")


def list_keys(row: dict[str, Any]) -> str:
    """Return the first keys of a record for an error message."""
    return ", ".join(list(row)[:12]) or "none"
