"""Summaries anybody can make without a model: the lines that a model has to beat."""

import re
from collections.abc import Callable

from evaluate.scores.rouge import rouge

# A full stop between letters or digits (3.5, e.g. in URLs) ends nothing; CSL writes others where Chinese has 。.
_SENTENCE = re.compile(r"(?:[^。！？!?\n.]|(?<=[0-9A-Za-z])\.(?=[0-9A-Za-z]))+[。！？!?.]*")


def sentences(text: str) -> list[str]:
    """The sentences of a text with their marks, without the space around them."""
    return [found for match in _SENTENCE.findall(text) if (found := match.strip())]


def first20(article: str, title: str) -> str:
    """The first 20 characters of the article."""
    return article.strip()[:20]


def first_sentence(article: str, title: str) -> str:
    """The first sentence of the article."""
    return next(iter(sentences(article)), "")


def best_sentence(article: str, title: str) -> str:
    """The sentence most like the title (ROUGE-1 F on characters): it looks at the title, so no extract of one does better."""
    return max(sentences(article), key=lambda sentence: rouge(sentence, title)["1"].f, default="")


BASELINES: dict[str, Callable[[str, str], str]] = {
    "first20": first20, "first_sentence": first_sentence, "best_sentence": best_sentence,
}
