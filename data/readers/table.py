"""Read tables of comma- or tab-separated values whose first line names the columns."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.readers.files import (
    MAX_LINE_BYTES,
    ProgressCallback,
    RawItem,
    RawRecord,
    read_numbered_lines,
)
from data.records import BadRecord

# What JSON and markup have; their first line may be made of short pieces, too.
_NOT_IN_NAMES = frozenset('{}[]<>"')
_QUOTED = re.compile(r'"(?:[^"]|"")*"')


@dataclass(frozen=True)
class TableHeader:
    """The first line of a table: names of columns in lower case, and how cells are written.

    A column without a name, such as the index that pandas writes, has an empty one. In a quoted
    table, as spreadsheets write it, a cell in quotation marks may have the delimiter and line ends
    in it, and a doubled quotation mark is one. In any other every character counts.
    """

    names: tuple[str, ...]
    delimiter: str
    is_quoted: bool


def find_header(file_head: bytes) -> TableHeader | None:
    """Return the first line of a file that begins with these bytes as column names, or None.

    None stands for a line of one name, of JSON or of markup, and for repeated names. The caller
    tells whether they are names of columns.
    """
    lines = file_head.decode("utf-8", "ignore").split("\n")
    # Spreadsheets write an empty row as its delimiters.
    first_line = next((line for line in lines if line.strip(", \t\r")), "")
    for delimiter in "\t,":
        cells = [cell.strip() for cell in first_line.strip("\r\n").split(delimiter)]
        names = tuple(
            (cell[1:-1] if _QUOTED.fullmatch(cell) else cell).strip().lower() for cell in cells
        )
        given = [name for name in names if name]
        is_unique = len(set(given)) == len(given)
        if len(given) > 1 and is_unique and _NOT_IN_NAMES.isdisjoint("".join(given)):
            # Tabs do not occur in text, so that programs other than spreadsheets do not quote.
            is_quoted = delimiter == "," or _has_quoted_cells(file_head)
            return TableHeader(names, delimiter, is_quoted)
    return None


def _has_quoted_cells(file_head: bytes) -> bool:
    """Return whether cells of a tab-separated table begin with quotation marks, all as quoted ones.

    A title may begin with a quotation mark of its own, which does not close at the end of the cell.
    """
    text = file_head.decode("utf-8", "ignore")
    starts = re.findall(r'(?:^|\t)"', text, re.MULTILINE)
    quoted = re.findall(r'(?:^|\t)"(?:[^"]|"")*"(?=\t|\r?$)', text, re.MULTILINE)
    # The last cell of the head may be cut.
    return bool(quoted) and len(quoted) >= len(starts) - 1


def read_table(
    path: Path,
    header: TableHeader,
    key_by_column: dict[str, str],
    on_bytes_read: ProgressCallback | None,
) -> Iterator[RawItem]:
    """Yield the rows below the header as JSON objects of text.

    `key_by_column` has the key for the name of each column that is read; the others are not. A row
    of another number of cells, or whose quotation marks do not close, becomes a BadRecord. No
    record is a row of empty cells, and the header, also repeated where tables were joined.
    """
    csv.field_size_limit(MAX_LINE_BYTES)
    name = str(path)
    num_lines = 0
    problems: list[BadRecord] = []

    def iter_lines() -> Iterator[str]:
        nonlocal num_lines
        for number, line, problem in read_numbered_lines(path, on_bytes_read):
            num_lines = number
            if problem is not None:
                problems.append(BadRecord(name, number, problem))
            else:
                yield line.decode("utf-8", "surrogateescape")

    lines = iter_lines()
    while True:
        first_line = num_lines + 1
        cells, problem = _read_row(lines, header)
        yield from problems
        problems.clear()
        if cells is None and problem is None:
            return
        if problem is None and cells and len(cells) != len(header.names):
            problem = f"{len(cells)} columns; the header has {len(header.names)}"
        if problem is not None:
            until = f" (up to line {num_lines})" if num_lines > first_line else ""
            yield BadRecord(name, first_line, problem + until)
        elif cells and tuple(cell.strip().lower() for cell in cells) != header.names:
            row = {
                key_by_column[column]: cell
                for column, cell in zip(header.names, cells, strict=True)
                if column in key_by_column
            }
            data = json.dumps(row, ensure_ascii=False)
            # Restores the bytes that are not UTF-8.
            yield RawRecord(name, first_line, data.encode("utf-8", "surrogateescape"))


def _read_row(lines: Iterator[str], header: TableHeader) -> tuple[list[str] | None, str | None]:
    """Return (cells, problem) of the next row; no cells if all are empty, None at the end."""
    if not header.is_quoted:
        line = next(lines, None)
        if line is None:
            return None, None
        return (line.rstrip("\r\n").split(header.delimiter) if line.strip() else []), None
    try:
        # One reader for each row: after an error it would go on in the middle of a cell.
        row = next(csv.reader(lines, delimiter=header.delimiter, strict=True), None)
    except csv.Error as error:
        return [], f"quotation marks of this row do not fit ({error})"
    return (row if row is None or any(map(str.strip, row)) else []), None
