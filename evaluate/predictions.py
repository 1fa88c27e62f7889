"""Prediction files: JSON lines, one answer a line, that any program can write and read.

The lines that this project writes also name the model, with the same fields as `--json`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_atomic
from data.readers.encoding import describe_encoding, is_utf8

# The fields of a line that name the model (see `evaluate.load_model.LoadedCheckpoint`).
MODEL_FIELDS = {"checkpoint": str, "step": int, "weights": str, "kv_cache": str}


def read_predictions(path: Path, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the lines of a file, JSON objects with a string for each of `fields`.

    Blank lines are skipped. Raises UserError, with the number of the line, for any other line, and
    for a file without lines.
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
            # JSON can contain an escaped lone surrogate, which UTF-8 cannot encode: such a text
            # could not be printed or written.
            json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            fault = f"not valid JSON ({error})"
            if not is_utf8(line):
                fault = describe_encoding(line, path)
            raise UserError(f"{path} line {number}: {fault}; a line is {expected_line}") from None
        for field in fields:
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise UserError(
                    f"{path} line {number}: has no string {field!r}; a line is {expected_line}"
                )
        rows.append(row)
    if not rows:
        raise UserError(f"{path} has no lines; a line is {expected_line}")
    return rows


def write_predictions(
    path: Path, rows: list[dict[str, Any]], model_fields: Mapping[str, str | int]
) -> None:
    """Write rows as JSON lines, atomically, with the fields that name the model in each line."""
    lines = [json.dumps({**row, **model_fields}, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(path, "".join(lines))


def resolve_model_fields(path: Path, rows: list[dict[str, Any]]) -> dict[str, str | int]:
    """Return the MODEL_FIELDS of `rows`, lines of the file `path`, if all rows have the same ones.

    If the rows have none, or differ, return no fields and print that the model is unknown.
    """
    fields_by_row = []
    for row in rows:
        fields = {}
        for key, field_type in MODEL_FIELDS.items():
            # `type` and not `isinstance`, for which True is an int: a step of True is no step.
            if type(row.get(key)) is field_type:
                fields[key] = row[key]
        fields_by_row.append(fields)
    if fields_by_row[0] and all(fields == fields_by_row[0] for fields in fields_by_row):
        return fields_by_row[0]
    print(f"{path} does not say which model answered: the metrics name no checkpoint and no step")
    return {}


def excerpt(text: str, length: int = 60) -> str:
    """Return a text on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
