"""Summaries without what is in a test set: `decontaminated(csl)`, to fine-tune on.

Releases hold the same article twice, with other titles or punctuation, one for training and one
for the test; a score on the second is then partly memory.
"""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import summaries
from data.records import Record, SkippedRecord, Summary


class Decontaminated(WithoutTestPassages[Summary]):
    """The records of a set that share no passage with a test set."""

    name = "decontaminated"
    usage = "decontaminated(NAME[,TEST_FILE…])"
    description = "the summaries that share no passage with a test set"
    source_kind = summaries.KIND
    kind = summaries.KIND
    # Dev files are the validation split of the source itself, which stays.
    held_out_splits = ("test",)

    def derive(
        self, record: Summary, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return the record itself."""
        return [record]


DERIVATION = Decontaminated()
