"""The consensus of samples: the one that has most in common with the others.

It is the choice of minimum Bayes risk (Bickel & Doksum 1977, section 1.3; of translations, Kumar &
Byrne 2004) with the loss 1 - ROUGE-1 F, where the samples themselves stand for the distribution of
the model's answers (Eikema & Aziz 2020, arXiv:2005.10283). What an answer says of the rest of the
article (`data.from_text.coverage`) can count, too: a small model does not see which of its samples
is about what the whole article is about. Parts of the article may be candidates beside the samples.
"""

from collections.abc import Sequence

import numpy as np

from data.from_text.coverage import count_characters, coverage
from data.sources.base import LetterCase
from evaluate.metrics.rouge import split_characters


def agreements(samples: Sequence[str], case: LetterCase, others: Sequence[str] = ()) -> np.ndarray:
    """Return the mean ROUGE-1 F, on characters, of each text with all samples except itself.

    The result is float64[n], for the samples and after them for the `others`. A text that occurs
    twice agrees with its copy. An empty one agrees with none. There are at least 2 samples.
    """
    texts = [*samples, *others]
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
    num_samples = len(samples)
    common = presence @ presence[:num_samples].T
    sizes = presence.sum(1)
    totals = sizes[:, np.newaxis] + sizes[:num_samples]
    f_scores = np.divide(2 * common, totals, out=np.zeros_like(common), where=totals > 0)
    np.fill_diagonal(f_scores, 0.0)
    num_compared = np.where(np.arange(len(texts)) < num_samples, num_samples - 1, num_samples)
    means: np.ndarray = f_scores.sum(1) / num_compared
    return means


def choose_consensus(
    samples: Sequence[str],
    case: LetterCase,
    *,
    extracts: Sequence[str] = (),
    article: str = "",
    coverage_weight: float = 0.0,
) -> int:
    """Return the index of the text that agrees most with the samples, of equals the first.

    The indices of `extracts` follow those of the samples. The coverage of the article by each text
    is added to its agreement, times `coverage_weight`.
    """
    scores = agreements(samples, case, extracts)
    if coverage_weight:
        counts = count_characters(article)
        scores += coverage_weight * np.array(
            [coverage(text, counts) for text in (*samples, *extracts)]
        )
    return int(scores.argmax())
