"""Repetition within answers, on characters without whitespace."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A loop is a piece of text that occurs at least MIN_LOOP_REPEATS times in a row, over at least
# MIN_LOOP_CHARACTERS characters together.
MIN_LOOP_REPEATS = 4
MIN_LOOP_CHARACTERS = 16
REPEATED_NGRAM_SIZE = 4


@dataclass(frozen=True)
class Repetition:
    """Fractions over all answers together, from 0 to 1, and the mean length.

    Results files store the fields under these names.
    """

    repeated_4grams: float
    """Fraction of the 4-grams that occurred before in the same answer."""
    distinct_1: float
    """Number of different characters over the number of all characters (Li et al. 2016)."""
    distinct_2: float
    """Number of different bigrams over the number of all bigrams."""
    loops: float
    """Fraction of the answers that loop, see `is_looping`."""
    empty: float
    """Fraction of the answers without any character."""
    characters: float
    """Mean length in characters."""


def measure_repetition(answers: Sequence[str]) -> Repetition:
    """Measure the repetition within answers; a ratio with a denominator of 0 is 0."""
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
    """Return whether a text loops: see MIN_LOOP_REPEATS and MIN_LOOP_CHARACTERS."""
    codes = np.array([ord(character) for character in "".join(text.split())], dtype=np.int32)
    for period in range(1, len(codes) // MIN_LOOP_REPEATS + 1):
        # In a loop with this period, every character after the first period equals the one a period
        # before it. So a loop is a run of such characters, one period shorter than the loop.
        min_run = max(MIN_LOOP_REPEATS * period, MIN_LOOP_CHARACTERS) - period
        # The runs lie between the characters that differ, with the ends of the text as borders.
        differing = np.flatnonzero(codes[period:] != codes[:-period])
        borders = np.concatenate([[-1], differing, [len(codes) - period]])
        longest_run = int(np.diff(borders).max()) - 1
        if longest_run >= min_run:
            return True
    return False


def _ngrams(text: str, n: int) -> list[str]:
    """Return all n-grams of the characters of a text, with repetitions."""
    return [text[start : start + n] for start in range(len(text) - n + 1)]


def _distinct_ratio(texts: Sequence[str], n: int) -> float:
    """Return the number of different n-grams in all texts over the number of all n-grams."""
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return _ratio(len(set(grams)), len(grams))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
