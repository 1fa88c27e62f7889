"""Read the records that a command measures a checkpoint on, from native files or shard sets."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypeVar

from common.errors import UserError
from data.kinds import find_kind
from data.kinds.base import RecordKind
from data.readers.files import expand_inputs, print_files_about_data
from data.records import Document, Record
from data.shards import ShardSet
from data.sources import find_source
from data.usable_records import UsableRecords

R = TypeVar("R", bound=Record)


def iter_usable_records(source: str, inputs: Sequence[str]) -> UsableRecords:
    """Return the usable records of native files in the format of `source`, to iterate over once.

    Usable are those that the source neither skips on purpose nor fails to read; the others are
    counted. `inputs` are files, folders or glob patterns. Raises UserError if the source is unknown
    or an input has no files.
    """
    reader = find_source(source)
    paths = expand_inputs(list(inputs))
    print_files_about_data(list(inputs))
    return UsableRecords(record for path in paths for record in reader.iter_records(path))


def read_usable_records(
    source: str, inputs: Sequence[str], kind: RecordKind[R], limit: int | None
) -> list[R]:
    """Return the first `limit` usable records (None: all), and print how many are left out.

    Raises UserError if the source has another kind of records, or if no record is usable.
    """
    reader = find_source(source)
    if reader.kind != kind.name:
        raise UserError(f"--source {source} has {reader.kind}; this measures {kind.name}")
    records = iter_usable_records(source, inputs)
    # The kind was checked above; `isinstance` is for the type checker.
    usable = [record for record in islice(records, limit) if isinstance(record, kind.record_type)]
    records.print_skipped()
    if not usable:
        raise UserError(
            f"--input {' '.join(inputs)}: no usable record; check that the files are of {source}"
        )
    return usable


def iter_texts(source: str, inputs: Sequence[str]) -> Iterator[str]:
    """Yield the texts of the usable documents of native files; then print how many are left out.

    Raises UserError if the source has another kind of records, or if no document is usable.
    """
    reader = find_source(source)
    if not find_kind(reader.kind).is_text:
        raise UserError(f"--source {source} has {reader.kind}; this measures documents")
    records = iter_usable_records(source, inputs)
    has_documents = False
    for record in records:
        has_documents = True
        yield record.plain_text()
    records.print_skipped()
    if not has_documents:
        raise UserError(
            f"--input {' '.join(inputs)}: no usable document; check that the files are of {source}"
        )


def read_split_records(shards: ShardSet, split: str, limit: int) -> list[Record]:
    """Return the first `limit` records of a split of a shard set; of text, its documents."""
    if not shards.kind.is_text:
        records = shards.load_records(split)
        return [records.record(index) for index in range(min(limit, len(records)))]
    sequences = shards.load_text(split)
    tokenizer = shards.load_tokenizer()
    return [
        Document(tokenizer.decode(sequences.tokens(index).tolist()))
        for index in range(min(limit, len(sequences)))
    ]
