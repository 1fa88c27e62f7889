"""Beginnings of articles with their headlines, to learn to summarize news: `headlines(news)`."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.title_pairs import (
    MAX_LEAD_CHARACTERS,
    MIN_HEADLINE_CHARACTERS,
    make_title_pairs,
)
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
        return make_title_pairs(
            record.text,
            has_title_line=has_title_line,
            min_title_characters=MIN_HEADLINE_CHARACTERS,
            max_article_characters=MAX_LEAD_CHARACTERS,
        )


DERIVATION = Headlines()
