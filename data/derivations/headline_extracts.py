"""Beginnings of articles with the part that says what the title says: `headline_extracts(news)`."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.extracts import make_extracts
from data.records import Document, Record, SkippedRecord


class HeadlineExtracts(DerivedSummaries):
    """Headlines in the words of the article, to learn to copy before `headlines(NAME)`."""

    name = "headline_extracts"
    usage = "headline_extracts(NAME[,TEST_FILE…])"
    version = 2
    description = "beginnings of articles with their part closest to the title, to copy it"

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """See `Transformation`."""
        return make_extracts(record.text, has_title_line=has_title_line)


DERIVATION = HeadlineExtracts()
