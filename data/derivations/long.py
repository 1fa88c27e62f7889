"""Long documents: `long(wikipedia,4096)` is the documents of at least 4,096 tokens, each whole.

Rows that are cut from a mixture of short documents teach nothing about a long past, because what
precedes a document has nothing to do with it.
"""

import numpy as np

from data.derivations.base import Arguments, Selection, parse_positive
from data.kinds import documents
from data.records import Document
from data.sequences import Sequences


class LongDocuments(Selection[Document]):
    """Documents by their tokens, `<bos>` and `<eos>` included."""

    name = "long"
    usage = "long(NAME,TOKENS)"
    description = "the documents of at least so many tokens"
    source_kind = documents.KIND
    kind = documents.KIND

    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        """Return the least number of tokens as `tokens`."""
        if len(arguments) != 1:
            raise ValueError("one number of tokens has to follow the name")
        return {"tokens": parse_positive(arguments[0], "the number of tokens")}

    def select(self, split: Sequences, arguments: Arguments) -> np.ndarray:
        """Return which documents are long enough, bool[n]."""
        is_long: np.ndarray = split.lengths() >= arguments["tokens"]
        return is_long

    def describe_source(self, split: Sequences, arguments: Arguments) -> str:
        """Return how long the longest document is."""
        return f"the longest has {split.lengths().max(initial=0):,} tokens"

    def reason(self, arguments: Arguments) -> str:
        """Return why the other documents are left out."""
        return f"shorter than {arguments['tokens']:,} tokens"


DERIVATION = LongDocuments()
