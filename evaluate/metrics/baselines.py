"""Summaries without a model: the baselines that a model has to beat."""

import re
from collections.abc import Callable

from evaluate.metrics.rouge import compute_rouge

# CSL has full stops in place of 。; one between letters or digits (3.5, URLs) ends no sentence.
_SENTENCE_PATTERN = re.compile(r"(?:[^。！？!?\n.]|(?<=[0-9A-Za-z])\.(?=[0-9A-Za-z]))+[。！？!?.]*")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of a text with their punctuation, without white space around them."""
    sentences = [match.strip() for match in _SENTENCE_PATTERN.findall(text)]
    return [sentence for sentence in sentences if sentence]


def first_20_characters(article: str, title: str) -> str:
    """Return the first 20 characters of the article."""
    return article.strip()[:20]


def first_sentence(article: str, title: str) -> str:
    """Return the first sentence of the article."""
    return next(iter(split_sentences(article)), "")


def oracle_sentence(article: str, title: str) -> str:
    """Return the sentence most like the title, by ROUGE-1 F on characters.

    It looks at the title: the upper bound of extracting one sentence.
    """
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
