"""Beginnings of articles with their headlines, to learn to summarize news: `headlines(news)`."""

from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.title_pairs import make_headlines


class Headlines(DerivedSummaries):
    """The longer titles of `titles(NAME)`, each with the first sentences of its article alone."""

    name = "headlines"
    version = 2
    usage = "headlines(NAME[,TEST_FILE…])"
    description = "beginnings of articles with their titles, to summarize news"
    make_pairs = staticmethod(make_headlines)


DERIVATION = Headlines()
