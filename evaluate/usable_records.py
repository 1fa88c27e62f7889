"""The usable records of native files, and a word about those that are not."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

from common.errors import UserError
from data.readers.files import expand
from data.records import BadRecord, Conversation, Document, Kind, Record, Summary, Unused
from data.sources import find_source


class Records:
    """The usable records of a source's files, one after another; what was passed over so far is counted."""

    def __init__(self, source: str, inputs: list[str], kinds: tuple[Kind, ...]) -> None:
        """UserError if the source's records are not of `kinds`."""
        self._reader, self._inputs = find_source(source), inputs
        if self._reader.kind not in kinds:
            raise UserError(f"--source {source} has {self._reader.kind}; this measures {' or '.join(kinds)}")
        self._unused: Counter[str] = Counter()
        self._bad, self._first_bad = 0, ""

    def __iter__(self) -> Iterator[Record]:
        for record in (record for path in expand(self._inputs) for record in self._reader.open(path)):
            if isinstance(record, BadRecord):
                self._bad += 1
                self._first_bad = self._first_bad or f"{record.file} line {record.line}: {record.reason}"
            elif isinstance(record, Unused):
                self._unused[record.reason] += 1
            else:
                yield record

    def print_left_out(self) -> None:
        """Print how many records were not used, and why; nothing where all were."""
        for reason, count in self._unused.items():
            print(f"left out, {reason}: {count:,} records")
        if self._bad:
            print(f"left out, unreadable: {self._bad:,} records, the first {self._first_bad}")


def read_records(source: str, inputs: list[str], kinds: tuple[Kind, ...], limit: int | None) -> list[Conversation | Summary]:
    """The first `limit` usable records (all without one); what was left out is printed.

    UserError if the source's records are not of `kinds`, or there are none.
    """
    records = Records(source, inputs, kinds)
    found = [record for record in islice(records, limit) if not isinstance(record, Document)]
    records.print_left_out()
    if not found:
        raise UserError(f"--input {' '.join(inputs)}: there is no record of {source} in it")
    return found
