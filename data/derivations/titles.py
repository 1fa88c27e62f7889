"""Articles and sections of text with their titles, to learn to summarize: `titles(wikipedia)`."""

from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.title_pairs import make_title_pairs


class Titles(DerivedSummaries):
    """The headings of documents that are good titles of what is below them."""

    name = "titles"
    version = 2
    usage = "titles(NAME[,TEST_FILE…])"
    description = "articles and sections of text with their titles, to summarize"
    make_pairs = staticmethod(make_title_pairs)


DERIVATION = Titles()
