"""Text without the sentences that say most of it, to write them: `pseudo_summaries(wikipedia)`."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.pseudo_summaries import make_pseudo_summaries
from data.records import Document, Record, SkippedRecord


class PseudoSummaries(DerivedSummaries):
    """The sentences of documents that PEGASUS takes out and lets a model write."""

    name = "pseudo_summaries"
    usage = "pseudo_summaries(NAME[,TEST_FILE…])"
    description = "text with the sentences that say most of the rest, to write them"

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """See `Transformation`."""
        return make_pseudo_summaries(record.text, has_title_line=has_title_line)


DERIVATION = PseudoSummaries()
