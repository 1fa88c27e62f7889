"""LCSTS (Hu et al. 2015, arXiv:1506.05865): short news and their headlines, from Weibo.

The native files PART_I.txt, PART_II.txt and PART_III.txt are pseudo-XML without escapes:

    <doc id=0>
        <human_label>5</human_label>
        <summary>
            headline
        </summary>
        <short_text>
            article
        </short_text>
    </doc>

PART_I has no labels. A label from 1 to 5 rates how well the headline fits; pairs below 3 are left
out, as in the paper. The copy on the hub is JSONL of `summary` and `text`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from data.readers.files import (
    MAX_LINE_BYTES,
    ProgressCallback,
    RawItem,
    RawRecord,
    read_head,
    read_numbered_lines,
    read_records,
)
from data.readers.hub import HubDataset
from data.records import BadRecord, SkippedRecord, Summary
from data.sources.article_title import build_summary, decode_utf8
from data.sources.base import SchemaError, Source, parse_json_object, require_text

MIN_LABEL = 3
_LABELS = ("1", "2", "3", "4", "5")
_DOC_START, _DOC_END = b"<doc", b"</doc>"
_DOC_BOUNDARY = re.compile(rb"(?=<doc\b)|(?<=</doc>)")
_WHITESPACE = " \t\r\n"
_UNCLOSED_PROBLEM = "this <doc> is not closed"


def _is_lcsts_file(path: Path, file_head: bytes) -> bool:
    """Return whether a file that begins with these bytes is one of the native PART files."""
    return file_head.lstrip().startswith(_DOC_START) and b"<short_text>" in file_head


def read_lcsts(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield the documents of a native file with their first lines, or the records of another."""
    if read_head(path).lstrip().startswith(b"<"):
        return _read_documents(path, on_bytes_read)
    return read_records(path, on_bytes_read)


def _read_documents(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield a raw record for every <doc>, a bad one for an unclosed <doc> and text outside of one.

    `start` is the line on which the open <doc> begins, 0 between two of them. `is_outside` is set
    while a text outside of any <doc>, which may have many lines, has been reported.
    """
    name = str(path)
    parts: list[bytes] = []
    start = size = 0
    is_outside = False
    for number, line, problem in read_numbered_lines(path, on_bytes_read):
        if problem is not None:
            yield BadRecord(name, start or number, problem)
            start, is_outside = 0, True
            continue
        for piece in _DOC_BOUNDARY.split(line):
            if piece.startswith(_DOC_START):
                if start:
                    yield BadRecord(name, start, _UNCLOSED_PROBLEM)
                start, parts, size, is_outside = number, [], 0, False
            if start:
                parts.append(piece)
                size += len(piece)
                if piece.endswith(_DOC_END):
                    yield RawRecord(name, start, b"".join(parts))
                    start = 0
                elif size > MAX_LINE_BYTES:
                    yield BadRecord(name, start, _UNCLOSED_PROBLEM)
                    start, parts, is_outside = 0, [], True
            elif piece.strip() and not is_outside:
                yield BadRecord(name, number, "there is text outside of any <doc>")
                is_outside = True
    if start:
        yield BadRecord(name, start, _UNCLOSED_PROBLEM)


def parse_lcsts(data: bytes) -> Summary | SkippedRecord:
    """Return the article and headline of one record; a SkippedRecord if its label is below 3."""
    if not data.lstrip().startswith(b"<"):
        row = parse_json_object(data)
        return build_summary(require_text(row, "text"), require_text(row, "summary"))
    text = decode_utf8(data)
    label = _tag_text(text, "human_label")
    article = _tag_text(text, "short_text")
    title = _tag_text(text, "summary")
    if label is not None and label not in _LABELS:
        raise SchemaError(f"<human_label> is {label!r}, not a number from 1 to 5")
    if article is None:
        raise SchemaError("there is no <short_text> in this <doc>")
    if title is None:
        raise SchemaError("there is no <summary> in this <doc>")
    summary = build_summary(article, title)
    if label is not None and int(label) < MIN_LABEL:
        return SkippedRecord(f"label below {MIN_LABEL}")
    return summary


def _tag_text(text: str, tag: str) -> str | None:
    """Return the text between two tags without layout, or None without tags.

    Raises SchemaError if the tags are not exactly one pair.
    """
    counts = (text.count(f"<{tag}>"), text.count(f"</{tag}>"))
    if counts == (0, 0):
        return None
    content, end, _ = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
    if counts != (1, 1) or not end:
        raise SchemaError(f"there is not one whole <{tag}> in this <doc>")
    return content.strip(_WHITESPACE)


SOURCES = (
    Source(
        name="lcsts",
        description="LCSTS: PART_I.txt … in pseudo-XML, pairs labelled below 3 left out; JSONL of "
        "summary and text",
        parse=parse_lcsts,
        read=read_lcsts,
        kind="summaries",
        hub=HubDataset("hugcyp/LCSTS", "default"),
        keys=(frozenset({"summary", "text"}),),
        recognizes_file=_is_lcsts_file,
    ),
)
