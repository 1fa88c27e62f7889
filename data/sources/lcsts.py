"""LCSTS (Hu et al. 2015, arXiv:1506.05865): short news and their headlines, from Weibo.

The native files are PART_I.txt, PART_II.txt and PART_III.txt, in something like XML, where nothing is escaped:

    <doc id=0>
        <human_label>5</human_label>
        <summary>
            headline
        </summary>
        <short_text>
            article
        </short_text>
    </doc>

PART_I has no labels. A label says from 1 to 5 how well headline and article fit; below 3 the pair is not used, as is
usual. The copy on the hub is JSONL of `summary` and `text`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data.readers.files import LINE_LIMIT, Advance, Raw, RawRecord, head, numbered, records
from data.records import BadRecord, Summary, Unused
from data.sources.base import BadRow, Hub, Source, row_of, text_of
from data.sources.article_title import decoded, summary

LEAST_LABEL = 3
_LABELS = ("1", "2", "3", "4", "5")
_BEGIN, _END = b"<doc", b"</doc>"
_EDGE = re.compile(rb"(?=<doc\b)|(?<=</doc>)")
_LAYOUT = " \t\r\n"
_OPEN = "this <doc> is not closed"


def is_native(beginning: bytes) -> bool:
    """Whether a file that begins so is one of the native PART files."""
    return beginning.lstrip().startswith(_BEGIN) and b"<short_text>" in beginning


def read(path: Path, advance: Advance | None) -> Iterator[Raw]:
    """The documents of a native file, each with the line it begins on; the records of anything else."""
    return _documents(path, advance) if head(path).lstrip()[:1] == b"<" else records(path, advance)


def _documents(path: Path, advance: Advance | None) -> Iterator[Raw]:
    """One raw record for each <doc>; one bad record for each that is not closed and each stretch outside of any."""
    name, start, size, outside = str(path), 0, 0, False
    parts: list[bytes] = []
    for number, line, problem in numbered(path, advance):
        if problem is not None:
            yield BadRecord(name, start or number, problem)
            start, outside = 0, True
            continue
        for piece in _EDGE.split(line):
            if piece.startswith(_BEGIN):
                if start:
                    yield BadRecord(name, start, _OPEN)
                start, parts, size, outside = number, [], 0, False
            if start:
                parts.append(piece)
                size += len(piece)
                if piece.endswith(_END):
                    yield RawRecord(name, start, b"".join(parts))
                    start = 0
                elif size > LINE_LIMIT:
                    yield BadRecord(name, start, _OPEN)
                    start, parts, outside = 0, [], True
            elif piece.strip() and not outside:
                yield BadRecord(name, number, "there is text outside of any <doc>")
                outside = True
    if start:
        yield BadRecord(name, start, _OPEN)


def parse(data: bytes) -> Summary | Unused:
    """The article and headline of one record, without the layout around them. Unused if its label is below 3."""
    if data.lstrip()[:1] != b"<":
        row = row_of(data)
        return summary(text_of(row, "text"), text_of(row, "summary"))
    text = decoded(data)
    label, article, title = (_part(text, tag) for tag in ("human_label", "short_text", "summary"))
    if label is not None and label not in _LABELS:
        raise BadRow(f"<human_label> is {label!r}, not a number from 1 to 5")
    if article is None or title is None:
        raise BadRow(f"there is no <{'short_text' if article is None else 'summary'}> in this <doc>")
    pair = summary(article, title)
    return pair if label is None or int(label) >= LEAST_LABEL else Unused(f"label below {LEAST_LABEL}")


def _part(text: str, tag: str) -> str | None:
    """What stands between the tags, without layout; None where they are not. BadRow where they do not make one pair."""
    begins, ends = text.count(f"<{tag}>"), text.count(f"</{tag}>")
    if (begins, ends) == (0, 0):
        return None
    found, end, _ = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
    if (begins, ends) != (1, 1) or not end:
        raise BadRow(f"there is not one whole <{tag}> in this <doc>")
    return found.strip(_LAYOUT)


SOURCE = Source(
    name="lcsts",
    description="LCSTS: PART_I.txt … in pseudo-XML, pairs labelled below 3 left out; JSONL of summary and text",
    parse=parse,
    read=read,
    kind="summaries",
    hub=Hub("hugcyp/LCSTS", "default"),
)
