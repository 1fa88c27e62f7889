"""Articles and sections of text with their titles, to learn to summarize: `titles(wikipedia)`."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.title_pairs import make_title_pairs
from data.records import Document, Record, SkippedRecord


class Titles(DerivedSummaries):
    """The headings of documents that are good titles of what is below them."""

    name = "titles"
    usage = "titles(NAME[,TEST_FILE…])"
    description = "articles and sections of text with their titles, to summarize"

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """See `Transformation`."""
        return make_title_pairs(record.text, has_title_line=has_title_line)


DERIVATION = Titles()
