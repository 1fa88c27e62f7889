"""How much answers repeat themselves, on characters; whitespace is left out before anything is counted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A loop: the same stretch of text at least so many times in a row, over at least so many characters.
MIN_LOOP_REPEATS, MIN_LOOP_CHARACTERS = 4, 16
REPEATED_NGRAM_SIZE = 4


@dataclass(frozen=True)
class Repetition:
    """Shares over all answers together, from 0 to 1."""

    repeated_4grams: float
    """Of all 4-grams, those that occurred before in the same answer."""
    distinct_1: float
    """Different characters over all characters, of all answers together (Li et al. 2016)."""
    distinct_2: float
    """Different pairs of neighbours over all pairs."""
    loops: float
    """Of all answers, those that `loops`."""
    empty: float
    """Of all answers, those without a character."""
    characters: float
    """Mean length."""


def measure_repetition(answers: Sequence[str]) -> Repetition:
    """The measures of one or more answers; a share of nothing is 0."""
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
    """Whether some stretch of the text stands at least 4 times in a row and fills at least 16 characters doing so."""
    codes = np.array([ord(character) for character in "".join(text.split())], dtype=np.int32)
    for period in range(1, len(codes) // MIN_LOOP_REPEATS + 1):
        # So many characters in a row equal those one period before them.
        needed = max(MIN_LOOP_REPEATS * period, MIN_LOOP_CHARACTERS) - period
        breaks = np.flatnonzero(codes[period:] != codes[:-period])
        edges = np.concatenate([[-1], breaks, [len(codes) - period]])
        if int(np.diff(edges).max()) - 1 >= needed:
            return True
    return False


def _ngrams(text: str, n: int) -> list[str]:
    return [text[start : start + n] for start in range(len(text) - n + 1)]


def _distinct_ratio(texts: Sequence[str], n: int) -> float:
    grams = [gram for text in texts for gram in _ngrams(text, n)]
    return _ratio(len(set(grams)), len(grams))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
