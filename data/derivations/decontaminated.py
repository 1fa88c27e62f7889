"""Records without what is in a test set: `decontaminated(csl)`, to train on.

Releases hold the same article twice, with other titles or punctuation, one for training and one
for the test; a score on the second is then partly memory.
"""

from collections.abc import Iterable
from typing import Any

from data.derivations.base import Arguments
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import documents
from data.kinds.base import RecordKind
from data.records import Record, SkippedRecord


class Decontaminated(WithoutTestPassages[Record]):
    """The records of a set of any kind that share no passage with a test set."""

    name = "decontaminated"
    usage = "decontaminated(NAME[,TEST_FILE…])"
    description = "the records that share no passage with a test set; NAME is of any kind"
    # Dev files are the validation split of the source itself, which stays.
    held_out_splits = ("test",)

    def __init__(self, kind: RecordKind[Any]) -> None:
        """Keep the kind of the source."""
        self.source_kind = self.kind = kind

    def for_kind(self, source_kind: RecordKind[Any]) -> "Decontaminated":
        """See `Derivation`."""
        return Decontaminated(source_kind)

    def derive(
        self, record: Record, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return the record itself."""
        return [record]


DERIVATION = Decontaminated(documents.KIND)
