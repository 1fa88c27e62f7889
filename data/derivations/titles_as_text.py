"""The pairs of `titles(NAME)` as text to pretrain on, in the chat template."""

from data.derivations.titles import Titles
from data.from_text import summaries_as_text


class TitlesAsText(Titles):
    """Titles with a loss on every token, so that fine-tuning continues what pretraining began."""

    name = "titles_as_text"
    usage = "titles_as_text(NAME[,TEST_FILE…])"
    description = "the same as text to pretrain on"
    kind = summaries_as_text.KIND


DERIVATION = TitlesAsText()
