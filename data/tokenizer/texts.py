"""Read the texts that a vocabulary is trained or measured on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.progress import progress_bar
from data.corpora.detect import detect_source
from data.corpora.sample import SAMPLE_PRETRAIN_FOLDER
from data.readers.files import expand_inputs, print_files_about_data
from data.records import Document
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError, Source, parse_json
from data.usable_records import UsableRecords

_SOURCE_ADVICE = "--source NAME or SOURCE=PATH"
# The tags of LCSTS's pseudo-XML, such as <doc id=0> and </summary>.
_TAG = re.compile(r"</?[a-z_]+(?: id=\d+)?>")
# Files of the sample's dev and test splits; LCSTS calls them PART_II and PART_III.
_HELD_OUT_FILE = re.compile(r"\btest\.|\bdev\.|PART_II+\.")


def parse_strings(data: bytes) -> Document:
    """Return the strings of a JSON value, or the columns of a line that is not JSON, one a line.

    Tags are dropped, and so are strings of ASCII alone: in Chinese data they are ids, types and
    URLs. Raises SchemaError if the JSON is nested too deeply.
    """
    try:
        strings = list(_iter_strings(parse_json(data)))
    except RecursionError:
        raise SchemaError("nested too deeply") from None
    except SchemaError:
        text = _TAG.sub("", data.decode("utf-8", errors="ignore"))
        strings = text.strip().split("\t")
    return Document("\n".join(string for string in strings if not string.isascii()))


def _iter_strings(value: Any) -> Iterator[str]:
    """Yield every string within a parsed JSON value; keys of objects are not included."""
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
    """Return `[SOURCE=]PATH` inputs of the whole sample without its dev and test splits."""
    folders = [SAMPLE_PRETRAIN_FOLDER.with_name(name) for name in ("sft", "summary")]
    # No file of the pretraining folder is held out, so the folder itself is an input; the source of
    # each file is detected. Of conversations and summaries all strings are read, whatever their
    # schema.
    inputs = [str(SAMPLE_PRETRAIN_FOLDER)]
    for file in expand_inputs(list(map(str, folders))):
        if not _HELD_OUT_FILE.search(file.name):
            inputs.append(f"{STRINGS_SOURCE.name}={file}")
    return inputs


def resolve_source_files(
    inputs: list[str], default_source: str | None
) -> list[tuple[Source, Path]]:
    """Return (source, file) for every file of `[SOURCE=]PATH` inputs.

    An input without SOURCE= is read by the default source; without a default, the source of each of
    its files is detected from its content. Raises UserError for an unknown source or path.
    """
    source_files = []
    for input_ in inputs:
        input_source, path = _split_source(input_)
        print_files_about_data([path])
        for file in expand_inputs([path]):
            name = input_source or default_source or detect_source([file], _SOURCE_ADVICE)
            # `strings` is a source of this command only and not registered in `data.sources`.
            source = STRINGS_SOURCE if name == STRINGS_SOURCE.name else find_source(name)
            source_files.append((source, file))
    return source_files


def _split_source(input_: str) -> tuple[str | None, str]:
    """Split `SOURCE=PATH` into source and path.

    The source is None if there is none; a prefix that is not a source is part of the path.
    """
    prefix, equals, path = input_.partition("=")
    is_source = prefix in SOURCES or prefix == STRINGS_SOURCE.name or prefix.startswith("jsonl:")
    return (prefix, path) if equals and is_source else (None, input_)


def read_texts(source_files: list[tuple[Source, Path]]) -> Iterator[str]:
    """Yield the plain text of every record, with a progress bar.

    Raises UserError after the last record if more than `MAX_BAD_SHARE` of them are unreadable.
    """
    total_bytes = sum(path.stat().st_size for _, path in source_files)
    with progress_bar("reading", total=total_bytes, unit="B") as bar:
        records = UsableRecords(
            source.try_parse(raw)
            for source, path in source_files
            for raw in source.read(path, bar.update)
        )
        for record in records:
            yield record.plain_text()
    records.check_bad_share(f"name the right source: {_SOURCE_ADVICE}")
