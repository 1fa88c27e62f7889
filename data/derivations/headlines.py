"""Beginnings of articles with their headlines, to learn to summarize news: `headlines(news)`."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.title_pairs import make_headlines
from data.records import Document, Record, SkippedRecord


class Headlines(DerivedSummaries):
    """The longer titles of `titles(NAME)`, each with the first sentences of its article alone."""

    name = "headlines"
    usage = "headlines(NAME[,TEST_FILE…])"
    description = "beginnings of articles with their titles, to summarize news"

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """See `Transformation`."""
        return make_headlines(record.text, has_title_line=has_title_line)


DERIVATION = Headlines()
