"""Predictions on disk: JSON lines, one answer each, that any tool can write and read.

Where this project wrote them, each line also says which model answered, as the JSON of the figures does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_atomic

# What a line may say of the model that answered (see `evaluate.load_model`).
MODEL_FIELDS = {"checkpoint": str, "step": int, "weights": str}


def read_predictions(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """The lines of a file, each an object in which all of `fields` are texts; blank lines are none.

    UserError, naming the line, for any other, and for a file without a line.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    expected_line = "{" + ", ".join(f'"{field}": "…"' for field in fields) + "}"
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            # Half a character (a lone surrogate) can be escaped in JSON, and neither printed nor written.
            json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{path} line {number}: not valid JSON ({error}); a line is {expected_line}"
            ) from None
        for field in fields:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise UserError(
                    f"{path} line {number}: there is no text {field!r} in it; a line is {expected_line}"
                )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no lines; a line is {expected_line}")
    return rows


def write_predictions(
    path: Path, rows: list[dict[str, Any]], model_fields: Mapping[str, str | int]
) -> None:
    """Write rows as JSON lines, whole or not at all; `model_fields`, what is said of the model that answered, stands in each."""
    write_atomic(
        path,
        "".join(json.dumps({**row, **model_fields}, ensure_ascii=False) + "\n" for row in rows),
    )


def resolve_model_fields(path: Path, rows: list[dict[str, Any]]) -> dict[str, str | int]:
    """What the lines of a file say of the model that answered; empty, and that is printed, unless all say the same."""
    fields_by_row = [
        {key: row[key] for key, kind in MODEL_FIELDS.items() if type(row.get(key)) is kind}
        for row in rows
    ]
    if fields_by_row[0] and all(each == fields_by_row[0] for each in fields_by_row):
        return fields_by_row[0]
    print(f"{path} does not say which model answered: the figures have no step")
    return {}


def excerpt(text: str, length: int = 60) -> str:
    """A text on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
