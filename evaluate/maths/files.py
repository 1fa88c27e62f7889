"""Read maths problems from files: JSON lines, GSM8K, and the Chinese part of MGSM.

jsonl    {"question": "…", "answer": 12 or "…"}     the last number of the answer counts
gsm8k    {"question": "…", "answer": "… #### 12"}   Cobbe et al. 2021, arXiv:2110.14168
mgsm_zh  question TAB 12, or {"question", "answer_number"}   Shi et al. 2022, arXiv:2210.03057
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.files import (
    RawRecord,
    expand_inputs,
    print_files_about_data,
    read_head,
    read_lines,
    read_records,
)
from data.records import BadRecord
from data.sources.base import SchemaError, parse_json_object, require_text
from evaluate.maths.numbers import last_number
from evaluate.maths.problems import Problem

_GSM8K_MARK = "####"


def read_problems(source: str, inputs: Sequence[str], limit: int | None) -> list[Problem]:
    """Return the first `limit` problems of files (None: all).

    Raises UserError, with file and line, for a problem that cannot be read: a test that is only
    partly read is another test.
    """
    print_files_about_data(list(inputs))
    problems: list[Problem] = []
    for path in expand_inputs(list(inputs)):
        for raw in _read_rows(source, path):
            if limit is not None and len(problems) == limit:
                return problems
            if isinstance(raw, BadRecord):
                raise UserError(f"{raw.file} line {raw.line}: {raw.reason}")
            try:
                problems.append(_parse_problem(source, raw.data))
            except SchemaError as error:
                raise UserError(f"{raw.file} line {raw.line}: {error}") from None
    if not problems:
        raise UserError(f"--input {' '.join(inputs)}: there are no problems")
    return problems


def _read_rows(source: str, path: Path) -> Iterator[RawRecord | BadRecord]:
    """Return the lines of a table of mgsm_zh, or the records of any other file."""
    is_table = source == "mgsm_zh" and b"\t" in read_head(path).partition(b"\n")[0]
    return read_lines(path) if is_table else read_records(path)


def _parse_problem(source: str, data: bytes) -> Problem:
    """Return the problem of one row. Raises SchemaError if it has no question or no number."""
    if source == "mgsm_zh" and data.lstrip()[:1] != b"{":
        return _parse_table_row(data)
    row = parse_json_object(data)
    question = require_text(row, "question").strip()
    if not question:
        raise SchemaError("the question is empty")
    if source == "gsm8k":
        _, mark, answer = require_text(row, "answer").rpartition(_GSM8K_MARK)
        if not mark:
            raise SchemaError(
                f"the answer has no '{_GSM8K_MARK} number'; of a file without it, --source jsonl "
                "takes the last number"
            )
        return Problem(question, _require_number(answer))
    field = "answer_number" if source == "mgsm_zh" else "answer"
    if field not in row:
        require_text(row, field)  # raises an error that names the fields
    return Problem(question, _require_number(row[field]))


def _parse_table_row(data: bytes) -> Problem:
    """Return the problem of a row of question TAB answer. Raises SchemaError for any other."""
    try:
        cells = data.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError:
        raise SchemaError("is not UTF-8") from None
    if len(cells) != 2 or not cells[0].strip():
        raise SchemaError(f"{len(cells)} columns; expected question TAB number")
    return Problem(cells[0].strip(), _require_number(cells[1]))


def _require_number(value: Any) -> Fraction:
    """Return the last number in a value, a number or a text. Raises SchemaError without any."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # str of a large or a small float, such as 1e+20, would be read as 20.
    text = f"{value:.12f}" if isinstance(value, float) else str(value)
    number = last_number(text) if is_number or isinstance(value, str) else None
    if number is None:
        raise SchemaError(f"the answer {str(value)[:40]!r} has no number")
    return number
