"""ROUGE-1, -2 and -L (Lin 2004) with rouge-chinese, on characters and on jieba words.

Characters are those of the text without whitespace, words those into which jieba (default mode)
segments it, without whitespace. Both texts are lower-cased first, or their case is kept: published
scores of CSL are of lower-cased text (CLGE), those of LCSTS are not. rouge-chinese counts an n-gram
once even if it occurs several times (sets, not multisets), and its ROUGE-L is based on the longest
common subsequence (LCS) of the whole texts. Scores on other units, in another case, or from
packages that count in another way, cannot be compared with these.
"""

import functools
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.sources.base import LetterCase

ROUGE_VARIANTS = ("1", "2", "l")
# Number of bootstrap resamples of a confidence interval.
NUM_RESAMPLES = 1000
# rouge-chinese computes the LCS in a dictionary with about 100 bytes per cell of the table, one
# cell for each pair of units. Larger tables than this, 26 MB, are left to `_lcs_length`.
_MAX_TABLE_CELLS = 1 << 18

UnitSplitter = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class RougeScore:
    """The score of one ROUGE variant, from 0 to 1."""

    precision: float
    recall: float
    f: float


def split_characters(text: str) -> list[str]:
    """Split a text into characters, without whitespace."""
    return list("".join(text.split()))


def split_words(text: str) -> list[str]:
    """Split a text into jieba words, without whitespace."""
    return [word for word in _jieba_segmenter().cut(text) if not word.isspace()]


UNIT_SPLITTERS: dict[str, UnitSplitter] = {
    "characters": split_characters,
    "jieba words": split_words,
}


def _import_without_warnings(name: str) -> Any:
    """Import a package whose source has invalid escapes, about which newer Pythons warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@functools.cache
def _jieba_segmenter() -> Any:
    """Return jieba's segmenter with its dictionary loaded."""
    # Imported here because jieba is needed only if words are scored.
    jieba = _import_without_warnings("jieba")
    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    # By default jieba reads its cache from the shared folder for temporary files, into which other
    # users can write. An empty folder makes it build the dictionary anew.
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter


def compute_rouge(
    prediction: str,
    reference: str,
    split_units: UnitSplitter = split_characters,
    *,
    case: LetterCase,
) -> dict[str, RougeScore]:
    """Return ROUGE-1, -2 and -L by the names in ROUGE_VARIANTS.

    `case` says whether both texts are lower-cased before they are split. All scores are 0 if one of
    them is empty, which rouge-chinese does not accept.
    """
    if case == "lower":
        prediction, reference = prediction.lower(), reference.lower()
    prediction_units = split_units(prediction)
    reference_units = split_units(reference)
    if not prediction_units or not reference_units:
        return dict.fromkeys(ROUGE_VARIANTS, RougeScore(0.0, 0.0, 0.0))
    is_long = len(prediction_units) * len(reference_units) > _MAX_TABLE_CELLS
    scorer = _rouge_scorer(("1", "2") if is_long else ROUGE_VARIANTS)
    # rouge-chinese splits the texts at spaces.
    [raw_scores] = scorer.get_scores(" ".join(prediction_units), " ".join(reference_units))
    if is_long:
        lcs_length = _lcs_length(prediction_units, reference_units)
        precision = lcs_length / len(prediction_units)
        recall = lcs_length / len(reference_units)
        raw_scores["rouge-l"] = {
            "p": precision,
            "r": recall,
            # The 1e-8 is that of rouge-chinese, so that long texts have the same scores.
            "f": 2 * precision * recall / (precision + recall + 1e-8),
        }
    scores = {}
    for variant in ROUGE_VARIANTS:
        raw_score = raw_scores[f"rouge-{variant}"]
        scores[variant] = RougeScore(raw_score["p"], raw_score["r"], raw_score["f"])
    return scores


@functools.cache
def _rouge_scorer(variants: tuple[str, ...]) -> Any:
    """Return the scorer of rouge-chinese for some of the ROUGE_VARIANTS."""
    return _import_without_warnings("rouge_chinese").Rouge(
        metrics=[f"rouge-{variant}" for variant in variants]
    )


def _lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, by Hyyrö's bit-vector algorithm (2004).

    Instead of the table of all pairs it holds one row of the table, in the bits of an int.
    """
    # Bit i of a unit's mask is 1 if first[i] is this unit.
    position_masks: dict[str, int] = {}
    for index, unit in enumerate(first):
        position_masks[unit] = position_masks.get(unit, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    # Bit i of a row is 0 if the LCS with first[: i + 1] is one longer than that with first[:i].
    row = all_ones
    for unit in second:
        matches = row & position_masks.get(unit, 0)
        # (V + (V & M)) | (V & ~M) in the paper; `row - matches` is V & ~M, because matches are bits
        # of the row.
        row = ((row + matches) | (row - matches)) & all_ones
    # The number of zeros.
    return len(first) - bin(row).count("1")


def bootstrap_mean_interval(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the mean of values[N, …] over N examples, and the ends of its 95 % interval: [3, …].

    The interval is that of the percentile bootstrap, see `resample_means`.
    """
    interval = np.percentile(resample_means(values, seed=seed), (2.5, 97.5), axis=0)
    return np.stack([values.mean(0), *interval])


def resample_means(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the means of values[N, …] over NUM_RESAMPLES draws of N examples: [resamples, …].

    The examples are drawn with replacement (Efron 1979), all scores of an example together.
    """
    generator = np.random.default_rng(seed)
    resampled_means = []
    for _ in range(NUM_RESAMPLES):
        indices = generator.integers(len(values), size=len(values))
        resampled_means.append(values[indices].mean(0))
    return np.stack(resampled_means)
