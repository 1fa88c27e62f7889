"""Repetition within answers, on characters without whitespace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A loop repeats a stretch of text at least so often in a row, over at least so many characters.
MIN_LOOP_REPEATS, MIN_LOOP_CHARACTERS = 4, 16
REPEATED_NGRAM_SIZE = 4


@dataclass(frozen=True)
class Repetition:
    """Rates over all answers together, from 0 to 1, and the mean length."""

    repeated_4grams: float
    """Fraction of the 4-grams that occurred before in the same answer."""
    distinct_1: float
    """Different characters over all characters (Li et al. 2016)."""
    distinct_2: float
    """Different bigrams over all bigrams."""
    loops: float
    """Fraction of the answers that loop, see `is_looping`."""
    empty: float
    """Fraction of the answers without any character."""
    characters: float
    """Mean length in characters."""


def measure_repetition(answers: Sequence[str]) -> Repetition:
    """Measure one or more answers; a ratio with an empty denominator is 0."""
    texts = ["".join(answer.split()) for answer in answers]
    ngrams_by_text = [_ngrams(text, REPEATED_NGRAM_SIZE) for text in texts]
    return Repetition(
        repeated_4grams=_ratio(
            sum(len(grams) - len(set(grams)) for grams in ngrams_by_text),
            sum(map(len, ngrams_by_text)),
        ),
        distinct_1=_distinct_ratio(texts, 1),
        distinct_2=_distinct_ratio(texts, 2),
        loops=_ratio(sum(map(is_looping, texts)), len(texts)),
        empty=_ratio(sum(not text for text in texts), len(texts)),
        characters=_ratio(sum(map(len, texts)), len(texts)),
    )


def is_looping(text: str) -> bool:
    """Return True if a stretch of the text is repeated 4 times in a row, over 16 characters."""
    codes = np.array([ord(character) for character in "".join(text.split())], dtype=np.int32)
    for period in range(1, len(codes) // MIN_LOOP_REPEATS + 1):
        # A loop of this period is a run of characters that equal those one period before. The run
        # lacks the first repeat, which has nothing before it to be equal to.
        min_run = max(MIN_LOOP_REPEATS * period, MIN_LOOP_CHARACTERS) - period
        breaks = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate([[-1], breaks, [len(codes) - period]])
        if int(np.diff(edges).max()) - 1 >= min_run:
            return True
    return False


def _ngrams(text: str, n: int) -> list[str]:
    return [text[start : start + n] for start in range(len(text) - n + 1)]


def _distinct_ratio(texts: Sequence[str], n: int) -> float:
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return _ratio(len(set(grams)), len(grams))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
