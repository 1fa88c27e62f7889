"""The usable records among all that a source reads, and the rule for those that are not.

A source skips some records on purpose and cannot read others. Reading goes on in both cases, and
the counts are reported. Where more than a certain share is unreadable, most likely the source is
the wrong one: `check_bad_share` is that rule for preparation and for tokenizer training alike.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from common.errors import UserError
from data.records import BadRecord, Record, SkippedRecord

# The largest share of records that may be unreadable, unless an option says otherwise.
MAX_BAD_SHARE = 0.01


class UsableRecords:
    """The usable records of an iterable, one after the other; the rest is counted on the way."""

    def __init__(self, records: Iterable[Record | SkippedRecord | BadRecord]) -> None:
        """Nothing is read or counted before the iteration."""
        self._records = records
        self._skip_counts: Counter[str] = Counter()
        self._num_usable = 0
        self._num_bad = 0
        self._first_bad: BadRecord | None = None

    def __iter__(self) -> Iterator[Record]:
        """Yield the usable records, and count the others while reading."""
        for record in self._records:
            if isinstance(record, BadRecord):
                self._num_bad += 1
                self._first_bad = self._first_bad or record
            elif isinstance(record, SkippedRecord):
                self._skip_counts[record.reason] += 1
            else:
                self._num_usable += 1
                yield record

    def print_skipped(self) -> None:
        """Print how many records were not used so far, and why; print nothing if all were."""
        for reason, count in self._skip_counts.items():
            print(f"left out, {reason}: {count:,} records")
        if self._first_bad is not None:
            first = self._first_bad
            print(
                f"left out, unreadable: {self._num_bad:,} records, the first {first.file} line "
                f"{first.line}: {first.reason}"
            )

    def check_bad_share(self, advice: str) -> None:
        """Raise UserError with `advice` if too many of the records so far are unreadable."""
        num_records = self._num_usable + self._skip_counts.total() + self._num_bad
        check_bad_share(
            num_records, self._num_bad, self._first_bad, max_share=MAX_BAD_SHARE, advice=advice
        )


def check_bad_share(
    num_records: int, num_bad: int, first_bad: BadRecord | None, *, max_share: float, advice: str
) -> None:
    """Raise UserError with `advice` if more than `max_share` of the records are unreadable.

    `first_bad` is the first unreadable record, which the message quotes, or None if all are
    readable.
    """
    if first_bad is None or num_bad <= max_share * num_records:
        return
    raise UserError(
        f"{num_bad} of {num_records} records cannot be read ({num_bad / num_records:.2%}, and at "
        f"most {max_share:.2%} may be), the first in {first_bad.file} line {first_bad.line}: "
        f"{first_bad.reason}; {advice}"
    )
