"""What a vocabulary is learnt from or measured on: the texts of files, read by a source or as whatever they hold."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from common.errors import UserError
from common.progress import progress
from data.corpora.resolver import SAMPLE_FOLDER
from data.readers.detect import detect
from data.readers.files import expand
from data.records import BadRecord, Document, Record, Summary, Unused
from data.sources import SOURCES, find_source
from data.sources.base import BadRow, Source

# The share of records that may be unreadable before the source is thought to be the wrong one.
BAD_SHARE = 0.01
_TAG = re.compile(r"</?[a-z_]+(?: id=\d+)?>")
_HELD_OUT = re.compile(r"\btest\.|\bdev\.|PART_II+\.")


def strings(data: bytes) -> Document:
    """Every string of a JSON value, or, of what is no JSON, every column of a line; tags are dropped.

    Strings of ASCII alone are left out: in Chinese data they are ids, kinds and addresses.
    """
    try:
        found = list(_strings(orjson.loads(data)))
    except RecursionError:
        raise BadRow("nested too deeply") from None
    except orjson.JSONDecodeError:
        found = _TAG.sub("", data.decode("utf-8", errors="ignore")).strip().split("\t")
    return Document("\n".join(text for text in found if not text.isascii()))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


STRINGS = Source(name="strings", description="every string of JSON lines, every column of other lines", parse=strings)


def sample_inputs() -> list[str]:
    """The texts of the project's sample that models are trained on: all but what is held out for tests."""
    folders = [SAMPLE_FOLDER.with_name(name) for name in ("sft", "summary")]
    files = expand([str(folder) for folder in folders])
    return [str(SAMPLE_FOLDER), *(f"{STRINGS.name}={file}" for file in files if not _HELD_OUT.search(file.name))]


def sources_of(inputs: list[str], default: str | None) -> list[tuple[Source, Path]]:
    """The files of `[SOURCE=]PATH` inputs, each with its source. UserError for an unknown source or path."""
    found = []
    for text in inputs:
        prefix, equals, path = text.partition("=")
        named = bool(equals) and (prefix in SOURCES or prefix == STRINGS.name or prefix.startswith("jsonl:"))
        source = prefix if named else default
        for file in expand([path if named else text]):
            name = source or detect([file])
            found.append((STRINGS if name == STRINGS.name else find_source(name), file))
    return found


def _text(record: Record) -> str:
    """All that a record says."""
    if isinstance(record, Document):
        return record.text
    if isinstance(record, Summary):
        return f"{record.article}\n{record.title}"
    return "\n".join([record.reference, *(text for turn in record.turns for text in (turn.question, turn.answer))])


def read_texts(files: list[tuple[Source, Path]]) -> Iterator[str]:
    """The text of every document. UserError at the end if more than `BAD_SHARE` of the records could not be read."""
    good, bad = 0, []
    with progress("reading", total=sum(path.stat().st_size for _, path in files), unit="B") as bar:
        for source, path in files:
            for raw in source.read(path, bar.update):
                record = source.decode(raw)
                if isinstance(record, BadRecord):
                    bad.append(record)
                elif not isinstance(record, Unused):
                    good += 1
                    yield _text(record)
    if len(bad) > BAD_SHARE * (good + len(bad)):
        first = bad[0]
        raise UserError(
            f"{first.file}, record {first.line}: {first.reason} ({len(bad)} of {good + len(bad)} records could not be "
            "read; name the right source: --source NAME or SOURCE=PATH)"
        )
