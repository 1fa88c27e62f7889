"""Read files of questions and of votes as JSON objects, with the place of each for messages."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.files import read_records
from data.records import BadRecord
from data.sources.base import SchemaError, parse_json_object
from evaluate.predictions import excerpt

MAX_NAME_CHARACTERS = 200
QuestionId = int | str


def read_json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSON list or of JSON lines with places such as `votes.jsonl line 3`.

    In a list the number is that of the element. Raises UserError if the file cannot be read, and
    for anything in it that is no object.
    """
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is not a file; name a file of JSON lines, or with a JSON list")
    for raw in read_records(path):
        place = f"{path} line {raw.line}"
        if isinstance(raw, BadRecord):
            raise UserError(f"{place}: {raw.reason}; correct the file, or write it again")
        try:
            row = parse_json_object(raw.data)
        except SchemaError as error:
            raise UserError(f"{place}: {excerpt(str(error), 300)}") from None
        yield place, row


def read_question_id(row: dict[str, Any], place: str) -> QuestionId | None:
    """Return the `question_id` of a row, or None if it has none.

    Raises UserError unless it is a whole number or text.
    """
    value = row.get("question_id")
    is_text = isinstance(value, str) and bool(value.strip())
    # `type` and not `isinstance`, for which True is an int.
    if value is None or type(value) is int or is_text:
        return value
    raise UserError(
        f"{place}: question_id is {excerpt(repr(value))}; it has to be a whole number or text"
    )


def check_name(name: Any, place: str, field: str) -> str:
    """Return the name of a model or a judge.

    Raises UserError unless it is text on one line. It is printed, and the file is not trusted.
    """
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise UserError(
            f"{place}: {field} is {excerpt(repr(name))}; it has to be a name of printable "
            "characters"
        )
    if len(name) > MAX_NAME_CHARACTERS:
        raise UserError(f"{place}: {field} is longer than {MAX_NAME_CHARACTERS} characters")
    return name
