"""Derivations of summaries from text."""

from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import documents, summaries
from data.records import Document


class DerivedSummaries(WithoutTestPassages[Document]):
    """Summaries made of text."""

    source_kind = documents.KIND
    kind = summaries.KIND
