"""Summaries anybody can make without a model: the lines that a model has to beat."""

import re
from collections.abc import Callable

from evaluate.scores.rouge_metric import compute_rouge

# A full stop between letters or digits (3.5, e.g. in URLs) ends nothing; CSL writes others where Chinese has 。.
_SENTENCE_PATTERN = re.compile(r"(?:[^。！？!?\n.]|(?<=[0-9A-Za-z])\.(?=[0-9A-Za-z]))+[。！？!?.]*")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text with their marks, without the space around them."""
    return [found for match in _SENTENCE_PATTERN.findall(text) if (found := match.strip())]


def first_20_characters(article: str, title: str) -> str:
    """The first 20 characters of the article."""
    return article.strip()[:20]


def first_sentence(article: str, title: str) -> str:
    """The first sentence of the article."""
    return next(iter(split_sentences(article)), "")


def oracle_sentence(article: str, title: str) -> str:
    """The sentence most like the title (ROUGE-1 F on characters): it looks at the title, so no extract of one does better."""
    return max(
        split_sentences(article),
        key=lambda sentence: compute_rouge(sentence, title)["1"].f,
        default="",
    )


BASELINES: dict[str, Callable[[str, str], str]] = {
    "first20": first_20_characters,
    "first_sentence": first_sentence,
    "best_sentence": oracle_sentence,
}
