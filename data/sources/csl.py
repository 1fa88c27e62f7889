"""CSL (Li et al. 2022, arXiv:2209.05034): abstracts and titles of Chinese papers.

    title TAB abstract                          as released with CLGE
    to title TAB abstract TAB title             as released by the authors, a prompt for each task
    {"content": abstract, "summary": title}     JSONL
    {"title": title, "abst": abstract}          JSONL
    标题,摘要 or title TAB abstract …             CSV or TSV of a spreadsheet, with its header

Every line is parsed by its own shape, or below a header by the names of the columns. All characters
stay as released, quotation marks around an abstract included: published scores are for the released
text. Below a header only, cells that a spreadsheet put in quotation marks lose them.
"""

import itertools
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from data.readers.files import (
    ProgressCallback,
    RawItem,
    has_text_suffix,
    read_head,
    read_lines,
    read_records,
)
from data.readers.table import read_table
from data.records import SkippedRecord, Summary
from data.sources.article_title import (
    build_summary,
    decode_utf8,
    find_pair_columns,
    find_pair_table,
)
from data.sources.base import SchemaError, Source, parse_json_object, require_text

_PROMPT = re.compile(r"to [a-z]+")
_TITLE_PROMPT = "to title"
_MIN_MATCH_SHARE = 0.9
# The most characters in the cells of a header that has other names, and how many times as long an
# abstract is.
_MAX_HEADER_CELL = 10
_MIN_HEADER_RATIO = 4
_JSON_START = re.compile(r"\s*(?:\{|\[\s*[{\]])")


def is_csl_table(file_head: bytes) -> bool:
    """Return whether a file that begins with these bytes is a table of titles and abstracts.

    Its rows are title, abstract, or prompt, abstract, title with a prompt such as "to title". A
    table with the abstract before the title counts too, so that the parser reports the exchange. A
    table with a column of repeated values does not: these are labels.
    """
    if _JSON_START.match(file_head.decode("utf-8", "ignore")):
        return False
    rows = _split_rows(file_head)
    pair_rows = [row for row in rows if len(row) == 2 and all(cell.strip() for cell in row)]
    # Fewer distinct values than half the rows: the column has labels.
    pair_columns = zip(*pair_rows, strict=True)
    has_labels = any(2 * len(set(column)) < len(pair_rows) for column in pair_columns)
    # A few bad lines are left to the parser, which reports them.
    min_matches = _MIN_MATCH_SHARE * len(rows)
    is_pair_table = len(pair_rows) > min_matches and not has_labels
    return _has_prompts(file_head) or is_pair_table


def _has_prompts(file_head: bytes) -> bool:
    """Return whether nearly all rows of a file that begins with these bytes begin with a prompt."""
    rows = _split_rows(file_head)
    prompt_rows = [row for row in rows if len(row) == 3 and _PROMPT.fullmatch(row[0])]
    return len(prompt_rows) > _MIN_MATCH_SHARE * len(rows)


def _has_other_header(file_head: bytes) -> bool:
    """Return whether a table of two columns begins with names that `find_pair_columns` lacks.

    A pair would have a sentence where these have a word.
    """
    first, *others = _split_rows(file_head)
    lengths = [len(row[1]) for row in others if len(row) == 2]
    if len(first) != 2 or not lengths:
        return False
    limit = min(_MAX_HEADER_CELL, statistics.median(lengths) / _MIN_HEADER_RATIO)
    return max(map(len, first)) <= limit


def _split_rows(file_head: bytes) -> list[list[str]]:
    """Return the rows of a table without the last, which may be cut, if there are others."""
    text = file_head.decode("utf-8", "ignore")
    rows = [line.split("\t") for line in text.split("\n") if line.strip()]
    return rows[:-1] or rows


def _is_csl_file(path: Path, file_head: bytes) -> bool:
    """Return whether a file is CSL in a table; a name such as *.txt means plain text instead.

    A header is the line of a table whatever the file is called.
    """
    table = find_pair_table(file_head)
    if table is not None:
        return not table.is_lcsts
    return not has_text_suffix(path) and is_csl_table(file_head)


def read_csl(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield the rows of a table, or the records of any other file.

    A table is split into lines even if its first title begins with a bracket, like a JSON list.
    """
    head = read_head(path)
    table = find_pair_table(head)
    # The prompts tell what the other columns are, whatever the header calls them.
    if table is not None and not _has_prompts(head):
        keys = {table.article: "abst", table.title: "title"}
        return read_table(path, table.header, keys, on_bytes_read)
    if is_csl_table(head):
        rows = read_lines(path, on_bytes_read)
        return itertools.islice(rows, 1, None) if _has_other_header(head) else rows
    return read_records(path, on_bytes_read)


def parse_csl(data: bytes) -> Summary | SkippedRecord:
    """Return the abstract and title of one record, or a SkippedRecord.

    That is for another task's prompt, and for the names of the columns. Raises SchemaError if the
    record fits none of the schemas of CSL.
    """
    if data.lstrip()[:1] == b"{":
        row = parse_json_object(data)
        if "content" in row:
            return build_summary(require_text(row, "content"), require_text(row, "summary"))
        return build_summary(require_text(row, "abst"), require_text(row, "title"))
    columns = decode_utf8(data).rstrip("\r\n").split("\t")
    if find_pair_columns(columns) is not None:
        return SkippedRecord("header")
    if _PROMPT.fullmatch(columns[0]):
        if len(columns) != 3:
            raise SchemaError(
                f"the prompt {columns[0]!r} is followed by {len(columns) - 1} columns, not by 2"
            )
        if columns[0] != _TITLE_PROMPT:
            return SkippedRecord("not a summary")
        return build_summary(columns[1], columns[2])
    if len(columns) != 2:
        raise SchemaError(
            f"{len(columns)} columns; expected title TAB abstract, or {_TITLE_PROMPT} TAB abstract "
            "TAB title"
        )
    return build_summary(columns[1], columns[0])


SOURCES = (
    Source(
        name="csl",
        description="CSL: TSV of title and abstract, or of prompt, abstract and title; CSV or TSV "
        "with a header; JSONL of content, summary or abst, title",
        parse=parse_csl,
        read=read_csl,
        kind="summaries",
        rouge_case="lower",
        keys=(frozenset({"content", "summary"}), frozenset({"title", "abst"})),
        recognizes_file=_is_csl_file,
    ),
)
