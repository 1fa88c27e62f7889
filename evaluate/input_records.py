"""The records of native files that a command measures a checkpoint on."""

from collections.abc import Sequence
from itertools import islice
from typing import TypeVar

from common.errors import UserError
from data.kinds.base import RecordKind
from data.readers.files import expand_inputs
from data.records import Record
from data.sources import find_source
from data.usable_records import UsableRecords

R = TypeVar("R", bound=Record)


def iter_usable_records(source: str, inputs: Sequence[str]) -> UsableRecords:
    """Return the usable records of a source's files."""
    reader = find_source(source)
    paths = expand_inputs(list(inputs))
    return UsableRecords(record for path in paths for record in reader.iter_records(path))


def read_usable_records(
    source: str, inputs: Sequence[str], kind: RecordKind[R], limit: int | None
) -> list[R]:
    """Return the first `limit` usable records (default: all), and print what is left out.

    Raises UserError if the source has another kind of records, or if there are none.
    """
    reader = find_source(source)
    if reader.kind != kind.name:
        raise UserError(f"--source {source} has {reader.kind}; this measures {kind.name}")
    records = iter_usable_records(source, inputs)
    usable = [record for record in islice(records, limit) if isinstance(record, kind.record_type)]
    records.print_skipped()
    if not usable:
        raise UserError(f"--input {' '.join(inputs)}: there is no record of {source} in it")
    return usable
