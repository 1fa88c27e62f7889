"""The pairs of `pseudo_summaries(NAME)` as text to pretrain on, in the chat template."""

from data.derivations.pseudo_summaries import PseudoSummaries
from data.from_text import summaries_as_text


class PseudoSummariesAsText(PseudoSummaries):
    """Pseudo-summaries with a loss on every token, as titles may be mixed into pretraining."""

    name = "pseudo_summaries_as_text"
    usage = "pseudo_summaries_as_text(NAME[,TEST_FILE…])"
    description = "the same as text to pretrain on"
    kind = summaries_as_text.KIND


DERIVATION = PseudoSummariesAsText()
