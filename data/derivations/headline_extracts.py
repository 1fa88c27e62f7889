"""Beginnings of articles with the part that says what the title says: `headline_extracts(news)`."""

from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.extracts import make_extracts


class HeadlineExtracts(DerivedSummaries):
    """Headlines in the words of the article, to learn to copy before `headlines(NAME)`."""

    name = "headline_extracts"
    usage = "headline_extracts(NAME[,TEST_FILE…])"
    version = 4
    description = (
        "beginnings of articles with their part that says most of title and rest, to copy it"
    )
    make_pairs = staticmethod(make_extracts)


DERIVATION = HeadlineExtracts()
