"""Text without the sentences that say most of it, to write them: `pseudo_summaries(wikipedia)`."""

from data.from_text.derived_summaries import DerivedSummaries
from data.from_text.pseudo_summaries import make_pseudo_summaries


class PseudoSummaries(DerivedSummaries):
    """The sentences of documents that PEGASUS takes out and lets a model write."""

    name = "pseudo_summaries"
    usage = "pseudo_summaries(NAME[,TEST_FILE…])"
    description = "text with the sentences that say most of the rest, to write them"
    make_pairs = staticmethod(make_pseudo_summaries)


DERIVATION = PseudoSummaries()
