"""`Source`: how the native files of one dataset are read and parsed."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from data.readers.encoding import describe_encoding, is_utf8
from data.readers.files import ProgressCallback, RawItem, read_records
from data.readers.hub import HubDataset
from data.records import BadRecord, Record, SkippedRecord

# Whether ROUGE lower-cases the letters of a text, or keeps their case.
LetterCase = Literal["lower", "kept"]

# A reason may quote a key of the record, and keys may be megabytes long.
MAX_REASON_CHARACTERS = 300
_LINE_END = re.compile(r"[\r\n]")


class SchemaError(ValueError):
    """A record that does not fit its source's schema; the message goes into the quarantine."""


class SkipRecordError(Exception):
    """A readable record that is left out; the message is the reason of its `SkippedRecord`."""


@dataclass(frozen=True, slots=True)
class Source:
    """One dataset.

    `read` splits a native file into raw records; `parse` turns the bytes of one raw record into a
    record of the kind named `kind` (a module of `data.kinds`) and raises SchemaError if they do not
    fit the schema. They are separate so that one process can read while others parse.

    `has_passages` says that its conversations are about a reference passage, so that
    `evaluate.passage_qa` can ask with the right passage and with another one.

    `has_title_line` says that the first line of each of its documents is the title.

    `check_fields` raises SkipRecordError for the row of a record with an unsupported field, and
    returns the fields that nothing is known about (`data.sources.fields`).

    `rouge_case` is the letter case in which published ROUGE scores of the dataset are counted.

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
    has_title_line: bool = False
    rouge_case: LetterCase = "lower"
    hub: HubDataset | None = None
    check_fields: Callable[[dict[str, Any]], set[str]] | None = None
    keys: tuple[frozenset[str], ...] = ()
    recognizes: Callable[[dict[str, Any], bool], bool] | None = None
    recognizes_file: Callable[[Path, bytes], bool] | None = None

    def iter_records(self, path: Path) -> Iterator[Record | SkippedRecord | BadRecord]:
        """Yield the records of a native file, with a BadRecord for each that cannot be read."""
        for raw in self.read(path, None):
            yield self.try_parse(raw)

    def try_parse(
        self, raw: RawItem, unlisted_fields: Counter[str] | None = None
    ) -> Record | SkippedRecord | BadRecord:
        """Parse a raw record; return a BadRecord if it does not fit the schema.

        The fields of the record that nothing is known about are counted in `unlisted_fields`.
        """
        if isinstance(raw, BadRecord):
            return raw
        try:
            if self.check_fields is not None:
                unlisted = self.check_fields(parse_json_object(raw.data))
                if unlisted_fields is not None:
                    unlisted_fields.update(printable_reason(name) for name in unlisted)
            return self.parse(raw.data)
        except SkipRecordError as error:
            return SkippedRecord(str(error))
        except SchemaError as error:
            return BadRecord(raw.file, raw.line, printable_reason(str(error)))

    def require_hub(self, hub_input: str) -> HubDataset:
        """Return the dataset on the Hugging Face hub. Raises UserError if the source has none.

        `hub_input` is the value of --input or --dev that names the hub, for the message.
        """
        if self.hub is None:
            raise UserError(
                f"--input {hub_input}: the source {self.name} is not on the hub; give its files"
            )
        return self.hub


def printable_reason(reason: str) -> str:
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
    """Parse one JSON object; see `parse_json`. Raises SchemaError for any other value."""
    row = parse_json(data)
    if not isinstance(row, dict):
        raise SchemaError(f"expected a JSON object, not {type(row).__name__}")
    return row


def parse_json(data: bytes) -> Any:
    """Parse one JSON value; NaN, as pandas writes a missing value, is null.

    Raises SchemaError with the likely remedy if the bytes are anything else.
    """
    import orjson

    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        value = _parse_with_any_number(data)
        if value is None:
            raise SchemaError(_describe_json_error(data, error)) from None
        return value


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


def strip_blank_lines(text: str) -> str:
    """Return a text without the blank lines before and after it.

    The lines that stay keep their white space: the first may be indented code.
    """
    content = text.strip()
    if not content:
        return ""
    before, _, after = text.partition(content)
    return _LINE_END.split(before)[-1] + content + _LINE_END.split(after)[0]


def list_keys(row: dict[str, Any]) -> str:
    """Return the first keys of a record for an error message."""
    return ", ".join(list(row)[:12]) or "none"
