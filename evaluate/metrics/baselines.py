"""Summaries without a model: the baselines that a model has to beat."""

import re
from collections.abc import Callable

from data.sources.base import LetterCase
from evaluate.metrics.rouge import compute_rouge

# A sentence and the punctuation that ends it. CSL has the full stop "." instead of "。": it ends a
# sentence too, except between letters or digits, as in 3.5 or a URL.
_SENTENCE_PATTERN = re.compile(r"(?:[^。！？!?\n.]|(?<=[0-9A-Za-z])\.(?=[0-9A-Za-z]))+[。！？!?.]*")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text with their punctuation, without white space around them."""
    sentences = [match.strip() for match in _SENTENCE_PATTERN.findall(text)]
    return [sentence for sentence in sentences if sentence]


def first_20_characters(article: str, title: str, case: LetterCase) -> str:
    """Return the first 20 characters of the article."""
    return article.strip()[:20]


def first_sentence(article: str, title: str, case: LetterCase) -> str:
    """Return the first sentence of the article."""
    return next(iter(split_sentences(article)), "")


def oracle_sentence(article: str, title: str, case: LetterCase) -> str:
    """Return the sentence of the article with the highest ROUGE-1 F to the title, on characters.

    It looks at the title, and is an upper bound of extracting one sentence.
    """
    return max(
        split_sentences(article),
        key=lambda sentence: compute_rouge(sentence, title, case=case)["1"].f,
        default="",
    )


# The baselines by their names in --baseline; each takes an article, its title and the letter case
# that ROUGE is counted in.
BASELINES: dict[str, Callable[[str, str, LetterCase], str]] = {
    "first20": first_20_characters,
    "first_sentence": first_sentence,
    "best_sentence": oracle_sentence,
}
# Those that are scored beside a model.
TRIVIAL_METHODS = ("first20", "first_sentence")
