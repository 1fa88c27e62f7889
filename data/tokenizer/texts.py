"""What a vocabulary is learnt from or measured on: the texts of files, read by a source or as whatever they hold."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from common.progress import progress_bar
from data.corpora.detect import detect_source
from data.corpora.sample import SAMPLE_PRETRAIN_FOLDER
from data.readers.files import expand_inputs
from data.records import Document
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError, Source
from data.usable_records import UsableRecords

_TAG = re.compile(r"</?[a-z_]+(?: id=\d+)?>")
_HELD_OUT_FILE = re.compile(r"\btest\.|\bdev\.|PART_II+\.")


def parse_strings(data: bytes) -> Document:
    """Every string of a JSON value, or, of what is no JSON, every column of a line; tags are dropped.

    Strings of ASCII alone are left out: in Chinese data they are ids, kinds and addresses.
    """
    try:
        found = list(_iter_strings(orjson.loads(data)))
    except RecursionError:
        raise SchemaError("nested too deeply") from None
    except orjson.JSONDecodeError:
        found = _TAG.sub("", data.decode("utf-8", errors="ignore")).strip().split("\t")
    return Document("\n".join(text for text in found if not text.isascii()))


def _iter_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _iter_strings(item)


STRINGS_SOURCE = Source(
    name="strings",
    description="every string of JSON lines, every column of other lines",
    parse=parse_strings,
)


def sample_text_inputs() -> list[str]:
    """The texts of the project's sample that models are trained on: all but what is held out for tests."""
    folders = [SAMPLE_PRETRAIN_FOLDER.with_name(name) for name in ("sft", "summary")]
    files = expand_inputs([str(folder) for folder in folders])
    return [
        str(SAMPLE_PRETRAIN_FOLDER),
        *(
            f"{STRINGS_SOURCE.name}={file}"
            for file in files
            if not _HELD_OUT_FILE.search(file.name)
        ),
    ]


def resolve_source_files(
    inputs: list[str], default_source: str | None
) -> list[tuple[Source, Path]]:
    """The files of `[SOURCE=]PATH` inputs, each with its source. UserError for an unknown source or path."""
    source_files = []
    for text in inputs:
        prefix, equals, path = text.partition("=")
        named = bool(equals) and (
            prefix in SOURCES or prefix == STRINGS_SOURCE.name or prefix.startswith("jsonl:")
        )
        source = prefix if named else default_source
        for file in expand_inputs([path if named else text]):
            name = source or detect_source([file])
            source_files.append(
                (STRINGS_SOURCE if name == STRINGS_SOURCE.name else find_source(name), file)
            )
    return source_files


def read_texts(source_files: list[tuple[Source, Path]]) -> Iterator[str]:
    """Yield the plain text of every record. Raises UserError at the end if too many cannot be read."""
    total_bytes = sum(path.stat().st_size for _, path in source_files)
    with progress_bar("reading", total=total_bytes, unit="B") as bar:
        records = UsableRecords(
            source.try_parse(raw)
            for source, path in source_files
            for raw in source.read(path, bar.update)
        )
        for record in records:
            yield record.plain_text()
    records.check_bad_share("name the right source: --source NAME or SOURCE=PATH")
