"""The usable records of native files, and a word about those that are not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from common.errors import UserError
from data.readers.files import expand_inputs
from data.records import BadRecord, Conversation, Document, Kind, Record, SkippedRecord, Summary
from data.sources import find_source


class UsableRecords:
    """The usable records of a source's files, one after another; what was passed over so far is counted."""

    def __init__(self, source: str, inputs: Sequence[str], kinds: tuple[Kind, ...]) -> None:
        """UserError if the source's records are not of `kinds`."""
        self._reader, self._inputs = find_source(source), inputs
        if self._reader.kind not in kinds:
            raise UserError(
                f"--source {source} has {self._reader.kind}; this measures {' or '.join(kinds)}"
            )
        self._unused_counts: Counter[str] = Counter()
        self._num_bad, self._first_bad_message = 0, ""

    def __iter__(self) -> Iterator[Record]:
        for record in (
            record
            for path in expand_inputs(list(self._inputs))
            for record in self._reader.iter_records(path)
        ):
            if isinstance(record, BadRecord):
                self._num_bad += 1
                self._first_bad_message = (
                    self._first_bad_message or f"{record.file} line {record.line}: {record.reason}"
                )
            elif isinstance(record, SkippedRecord):
                self._unused_counts[record.reason] += 1
            else:
                yield record

    def print_skipped(self) -> None:
        """Print how many records were not used, and why; nothing where all were."""
        for reason, count in self._unused_counts.items():
            print(f"left out, {reason}: {count:,} records")
        if self._num_bad:
            print(
                f"left out, unreadable: {self._num_bad:,} records, the first {self._first_bad_message}"
            )


def read_records(
    source: str, inputs: Sequence[str], kinds: tuple[Kind, ...], limit: int | None
) -> list[Conversation | Summary]:
    """The first `limit` usable records (all without one); what was left out is printed.

    UserError if the source's records are not of `kinds`, or there are none.
    """
    records = UsableRecords(source, inputs, kinds)
    usable_records = [
        record for record in islice(records, limit) if not isinstance(record, Document)
    ]
    records.print_skipped()
    if not usable_records:
        raise UserError(f"--input {' '.join(inputs)}: there is no record of {source} in it")
    return usable_records
