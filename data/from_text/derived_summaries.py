"""Derivations of summaries from text."""

import abc
from collections.abc import Iterable

from data.derivations.base import Arguments
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import documents, summaries
from data.records import Document, SkippedRecord, Summary


class DerivedSummaries(WithoutTestPassages[Document]):
    """Summaries made of text."""

    source_kind = documents.KIND
    kind = summaries.KIND

    @staticmethod
    @abc.abstractmethod
    def make_pairs(text: str, *, has_title_line: bool) -> Iterable[Summary | SkippedRecord]:
        """Return the summaries of a document, and why others are left out; see `derive`."""

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Summary | SkippedRecord]:
        """See `Transformation`."""
        return self.make_pairs(record.text, has_title_line=has_title_line)
