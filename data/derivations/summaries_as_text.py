"""Summaries as text to pretrain on: `summaries_as_text(csl)`, in the words of the chat template."""

from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text import summaries_as_text
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import summaries
from data.records import Record, SkippedRecord, Summary


class SummariesAsText(WithoutTestPassages[Summary]):
    """The records of a set of summaries with a loss on every token."""

    name = "summaries_as_text"
    usage = "summaries_as_text(NAME[,TEST_FILE…])"
    description = "summaries in the words of the chat template, as text to pretrain on"
    source_kind = summaries.KIND
    kind = summaries_as_text.KIND

    def derive(
        self, record: Summary, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return the record itself; its kind encodes it as text."""
        return [record]


DERIVATION = SummariesAsText()
