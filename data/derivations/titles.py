"""Articles and their titles out of text: `titles(wikipedia)`, to learn to summarize from.

No pair shares a long passage with a held-out file of a known corpus, or with the files that follow
the name: `titles(wikipedia,csl/test.tsv)`.
"""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.derivations.text_summaries import TextSummaries
from data.from_text.title_pairs import make_title_pairs
from data.records import Document, Record, SkippedRecord


class Titles(TextSummaries):
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
