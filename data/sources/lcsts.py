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
out, as in the paper. The copy on the hub is JSONL of `summary` and `text`; a table with a header,
as a spreadsheet exports it, is read by the names of its columns.
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
from data.readers.table import read_table
from data.records import BadRecord, SkippedRecord, Summary
from data.sources.article_title import build_summary, decode_utf8, find_pair_table
from data.sources.base import SchemaError, Source, parse_json_object, require_text

MIN_LABEL = 3
_LABEL = "human_label"
_LABELS = ("1", "2", "3", "4", "5")
_DOC_START, _DOC_END = b"<doc", b"</doc>"
# At the beginning of a line: text in JSON has no line ends.
_DOC_LINE = re.compile(rb"^[ \t]*<doc\b", re.MULTILINE)
_DOC_BOUNDARY = re.compile(rb"(?=<doc\b)|(?<=</doc>)")
_WHITESPACE = " \t\r\n"
_UNCLOSED_PROBLEM = "this <doc> is not closed"


def _is_lcsts_file(_path: Path, file_head: bytes) -> bool:
    """Return whether a file that begins with these bytes is one of the native PART files.

    So is a table with the columns of the copy on the hub, or with the names of the native tags.
    """
    table = find_pair_table(file_head)
    return _has_documents(file_head) or (table is not None and table.is_lcsts)


def _has_documents(file_head: bytes) -> bool:
    """Return whether a file has documents in pseudo-XML, whatever stands before the first."""
    return _DOC_LINE.search(file_head) is not None and b"<short_text>" in file_head


def read_lcsts(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield the documents of pseudo-XML, the rows of a table, or the records of any other file."""
    head = read_head(path)
    if _has_documents(head) or head.lstrip().startswith(b"<"):
        return _read_documents(path, on_bytes_read)
    table = find_pair_table(head)
    if table is not None:
        keys = {table.article: "text", table.title: "summary", _LABEL: _LABEL}
        return read_table(path, table.header, keys, on_bytes_read)
    return read_records(path, on_bytes_read)


def _read_documents(path: Path, on_bytes_read: ProgressCallback | None) -> Iterator[RawItem]:
    """Yield a RawRecord for every <doc>, a BadRecord for an unclosed one or text outside of any.

    A text outside of any <doc> is reported once, however many lines it has.
    """
    name = str(path)
    # The line on which the open <doc> begins, counted from 1; 0 while none is open.
    doc_line = 0
    doc_parts: list[bytes] = []
    doc_bytes = 0
    # Whether the text outside of any <doc>, in which the reader is, has been reported.
    outside_reported = False
    for number, line, problem in read_numbered_lines(path, on_bytes_read):
        if problem is not None:
            # The rest of an open <doc> is then outside of any, and has been reported with it.
            yield BadRecord(name, doc_line or number, problem)
            doc_line, outside_reported = 0, True
            continue
        for part in _DOC_BOUNDARY.split(line):
            if part.startswith(_DOC_START):
                if doc_line:
                    yield BadRecord(name, doc_line, _UNCLOSED_PROBLEM)
                doc_line, doc_parts, doc_bytes = number, [], 0
                outside_reported = False
            if doc_line:
                doc_parts.append(part)
                doc_bytes += len(part)
                if part.endswith(_DOC_END):
                    yield RawRecord(name, doc_line, b"".join(doc_parts))
                    doc_line = 0
                elif doc_bytes > MAX_LINE_BYTES:
                    # Without a limit an unclosed <doc> would hold the rest of the file in memory.
                    yield BadRecord(name, doc_line, _UNCLOSED_PROBLEM)
                    doc_line, doc_parts, outside_reported = 0, [], True
            elif part.strip() and not outside_reported:
                yield BadRecord(name, number, "there is text outside of any <doc>")
                outside_reported = True
    if doc_line:
        yield BadRecord(name, doc_line, _UNCLOSED_PROBLEM)


def parse_lcsts(data: bytes) -> Summary | SkippedRecord:
    """Return the article and headline of one record, or a SkippedRecord if its label is below 3.

    Raises SchemaError if article or headline is missing, or if the label is not from 1 to 5.
    """
    label: str | None
    if not data.lstrip().startswith(b"<"):
        row = parse_json_object(data)
        summary = build_summary(require_text(row, "text"), require_text(row, "summary"))
        # PART_I has no labels: in a table of all parts its cells are empty, and pandas, which has
        # no integer for that, writes the others as 5.0.
        value = row.get(_LABEL)
        label = str(value).strip().removesuffix(".0") or None if value is not None else None
    else:
        text = decode_utf8(data)
        label = _tag_text(text, _LABEL)
        article_text = _tag_text(text, "short_text")
        title_text = _tag_text(text, "summary")
        if article_text is None:
            raise SchemaError("there is no <short_text> in this <doc>")
        if title_text is None:
            raise SchemaError("there is no <summary> in this <doc>")
        # Checked before the label, so that a bad record is reported whatever its label.
        summary = build_summary(article_text, title_text)
    if label is not None and label not in _LABELS:
        raise SchemaError(f"human_label is {label!r}, not a number from 1 to 5")
    if label is not None and int(label) < MIN_LABEL:
        return SkippedRecord(f"label below {MIN_LABEL}")
    return summary


def _tag_text(text: str, tag: str) -> str | None:
    """Return the text between <tag> and </tag> without white space around it, or None without tags.

    Raises SchemaError if the tags are not exactly one pair in this order.
    """
    counts = (text.count(f"<{tag}>"), text.count(f"</{tag}>"))
    if counts == (0, 0):
        return None
    _, _, after_start = text.partition(f"<{tag}>")
    content, end_tag, _ = after_start.partition(f"</{tag}>")
    if counts != (1, 1) or not end_tag:
        raise SchemaError(f"there is not one whole <{tag}> in this <doc>")
    return content.strip(_WHITESPACE)


SOURCES = (
    Source(
        name="lcsts",
        description="LCSTS: PART_I.txt … in pseudo-XML, pairs labelled below 3 left out; JSONL of "
        "summary and text; CSV or TSV with a header",
        parse=parse_lcsts,
        read=read_lcsts,
        kind="summaries",
        rouge_case="kept",
        hub=HubDataset("hugcyp/LCSTS", "default"),
        keys=(frozenset({"summary", "text"}),),
        recognizes_file=_is_lcsts_file,
    ),
)
