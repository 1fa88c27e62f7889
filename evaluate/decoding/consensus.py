"""The consensus of samples: the one that has most in common with the others.

It is the choice of minimum Bayes risk (Bickel & Doksum 1977, section 1.3; of translations, Kumar &
Byrne 2004) with the loss 1 - ROUGE-1 F, where the samples themselves stand for the distribution of
the model's answers (Eikema & Aziz 2020, arXiv:2005.10283).
"""

from collections.abc import Sequence

import numpy as np

from data.sources.base import LetterCase
from evaluate.metrics.rouge import split_characters


def agreements(texts: Sequence[str], case: LetterCase) -> np.ndarray:
    """Return the mean ROUGE-1 F, on characters, of each text with all the others, float64[n].

    A text that occurs twice agrees with its copy. An empty one agrees with none. n is at least 2.
    """
    character_sets = [
        set(split_characters(text.lower() if case == "lower" else text)) for text in texts
    ]
    alphabet = sorted(set().union(*character_sets))
    presence = np.array(
        [[character in characters for character in alphabet] for characters in character_sets],
        np.float64,
    ).reshape(len(texts), len(alphabet))
    # As in rouge-chinese a character counts once, so that F is twice the intersection of two sets
    # over the sum of their sizes.
    common = presence @ presence.T
    sizes = presence.sum(1)
    totals = sizes[:, np.newaxis] + sizes
    f_scores = np.divide(2 * common, totals, out=np.zeros_like(common), where=totals > 0)
    np.fill_diagonal(f_scores, 0.0)
    means: np.ndarray = f_scores.sum(1) / (len(texts) - 1)
    return means


def choose_consensus(texts: Sequence[str], case: LetterCase) -> int:
    """Return the index of the text that agrees most with the others, of equals the first."""
    return int(agreements(texts, case).argmax())
