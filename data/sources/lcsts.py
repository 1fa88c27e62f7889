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

from data.readers.files import (
    MAX_LINE_BYTES,
    ProgressCallback,
    RawItem,
    RawRecord,
    read_head,
    read_numbered_lines,
    read_records,
)
from data.records import BadRecord, SkippedRecord, Summary
from data.sources.article_title import build_summary, decode_utf8
from data.sources.base import HubDataset, SchemaError, Source, parse_json_object, require_text

MIN_LABEL = 3
_LABELS = ("1", "2", "3", "4", "5")
_DOC_START, _DOC_END = b"<doc", b"</doc>"
_DOC_BOUNDARY = re.compile(rb"(?=<doc\b)|(?<=</doc>)")
_WHITESPACE = " \t\r\n"
_UNCLOSED_PROBLEM = "this <doc> is not closed"


def is_native_lcsts(file_head: bytes) -> bool:
    """Whether a file that begins so is one of the native PART files."""
    return file_head.lstrip().startswith(_DOC_START) and b"<short_text>" in file_head


def read_lcsts(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """The documents of a native file, each with the line it begins on; the records of anything else."""
    return (
        _read_documents(path, on_bytes_read)
        if read_head(path).lstrip()[:1] == b"<"
        else read_records(path, on_bytes_read)
    )


def _read_documents(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """One raw record for each <doc>; one bad record for each that is not closed and each stretch outside of any."""
    name, start, size, is_outside = str(path), 0, 0, False
    parts: list[bytes] = []
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
    """The article and headline of one record, without the layout around them. Unused if its label is below 3."""
    if data.lstrip()[:1] != b"<":
        row = parse_json_object(data)
        return build_summary(require_text(row, "text"), require_text(row, "summary"))
    text = decode_utf8(data)
    label, article, title = (
        _tag_text(text, tag) for tag in ("human_label", "short_text", "summary")
    )
    if label is not None and label not in _LABELS:
        raise SchemaError(f"<human_label> is {label!r}, not a number from 1 to 5")
    if article is None or title is None:
        raise SchemaError(
            f"there is no <{'short_text' if article is None else 'summary'}> in this <doc>"
        )
    pair = build_summary(article, title)
    return (
        pair
        if label is None or int(label) >= MIN_LABEL
        else SkippedRecord(f"label below {MIN_LABEL}")
    )


def _tag_text(text: str, tag: str) -> str | None:
    """What stands between the tags, without layout; None where they are not. BadRow where they do not make one pair."""
    num_opening, num_closing = text.count(f"<{tag}>"), text.count(f"</{tag}>")
    if (num_opening, num_closing) == (0, 0):
        return None
    found, end, _ = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")
    if (num_opening, num_closing) != (1, 1) or not end:
        raise SchemaError(f"there is not one whole <{tag}> in this <doc>")
    return found.strip(_WHITESPACE)


SOURCE = Source(
    name="lcsts",
    description="LCSTS: PART_I.txt … in pseudo-XML, pairs labelled below 3 left out; JSONL of summary and text",
    parse=parse_lcsts,
    read=read_lcsts,
    kind="summaries",
    hub=HubDataset("hugcyp/LCSTS", "default"),
)
