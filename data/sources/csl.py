"""CSL (Li et al. 2022, arXiv:2209.05034): abstracts and titles of Chinese papers, in the releases that circulate.

    title TAB abstract                          as released with CLGE
    to title TAB abstract TAB title             as released by the authors, one prompt for each of their tasks
    {"content": abstract, "summary": title}     JSONL
    {"title": title, "abst": abstract}          JSONL

They are told apart line by line. Quotation marks that the release put around an abstract (and doubled in it) are left
as they are, and so is every other character: published scores are those of the released text.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data.readers.files import Advance, Raw, head, lines, records
from data.records import Summary, Unused
from data.sources.base import BadRow, Source, row_of, text_of
from data.sources.article_title import decoded, summary

_PROMPT = re.compile(r"to [a-z]+")
_TITLE_PROMPT = "to title"
_MOST = 0.9
_JSON = re.compile(r"\s*(?:\{|\[\s*[{\]])")


def is_table(beginning: bytes) -> bool:
    """Whether a file that begins so has lines of titles and abstracts, in either order of columns.

    Columns whose values repeat are labels, and a table with labels is not taken for this one.
    """
    text = beginning.decode("utf-8", "ignore")
    if _JSON.match(text):
        return False
    found = [line.split("\t") for line in text.split("\n") if line.strip()]
    # The last line may be cut.
    rows = found[:-1] or found
    prompts = [row for row in rows if len(row) == 3 and _PROMPT.fullmatch(row[0])]
    pairs = [row for row in rows if len(row) == 2 and all(cell.strip() for cell in row)]
    labels = any(2 * len(set(column)) < len(pairs) for column in zip(*pairs, strict=True))
    # A bad line here and there is the reader's to report.
    return bool(rows) and (len(prompts) > _MOST * len(rows) or (len(pairs) > _MOST * len(rows) and not labels))


def read(path: Path, advance: Advance | None) -> Iterator[Raw]:
    """The lines of a table, whatever its first title begins with; the records of anything else."""
    return lines(path, advance) if is_table(head(path)) else records(path, advance)


def parse(data: bytes) -> Summary | Unused:
    """The abstract and title of one record. Unused for the authors' other tasks, which have no abstract or no title."""
    if data.lstrip()[:1] == b"{":
        row = row_of(data)
        if "content" in row:
            return summary(text_of(row, "content"), text_of(row, "summary"))
        return summary(text_of(row, "abst"), text_of(row, "title"))
    columns = decoded(data).rstrip("\r\n").split("\t")
    if _PROMPT.fullmatch(columns[0]):
        if len(columns) != 3:
            raise BadRow(f"the prompt {columns[0]!r} is followed by {len(columns) - 1} columns, not by 2")
        return summary(columns[1], columns[2]) if columns[0] == _TITLE_PROMPT else Unused("not a summary")
    if len(columns) != 2:
        raise BadRow(f"{len(columns)} columns; expected title TAB abstract, or {_TITLE_PROMPT} TAB abstract TAB title")
    return summary(columns[1], columns[0])


SOURCE = Source(
    name="csl",
    description="CSL: TSV of title and abstract, or of prompt, abstract and title; JSONL of content, summary or abst, title",
    parse=parse,
    read=read,
    kind="summaries",
)
