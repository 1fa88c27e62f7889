"""ROUGE-1, -2 and -L (Lin 2004) with rouge-chinese, on characters and on jieba words.

Characters: each character of the lower-cased text without whitespace, the convention of published
CSL and LCSTS results. Words: the segmentation of jieba (default mode) of the lower-cased text,
without whitespace. rouge-chinese counts an n-gram once however often it occurs (sets, not
multisets), and ROUGE-L is the longest common subsequence of the whole texts. Scores on other units,
or from packages with another way of counting, do not compare.
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

ROUGE_VARIANTS = ("1", "2", "l")
NUM_RESAMPLES = 1000
# rouge-chinese computes the LCS in a dictionary with 100 bytes a cell: the limit is 26 MB.
_MAX_TABLE_CELLS = 1 << 18

UnitSplitter = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class RougeScore:
    """One ROUGE score, from 0 to 1."""

    precision: float
    recall: float
    f: float


def split_characters(text: str) -> list[str]:
    """Split a text into characters, lower-cased, without whitespace."""
    return list("".join(text.lower().split()))


def split_words(text: str) -> list[str]:
    """Split a text into jieba words, lower-cased, without whitespace."""
    return [word for word in _jieba_segmenter().cut(text.lower()) if not word.isspace()]


UNIT_SPLITTERS: dict[str, UnitSplitter] = {
    "characters": split_characters,
    "jieba words": split_words,
}


def _import_without_warnings(name: str) -> Any:
    """Import a package whose source has invalid escapes, of which newer Pythons warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@functools.cache
def _jieba_segmenter() -> Any:
    jieba = _import_without_warnings("jieba")
    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    # By default it reads its cache from the shared folder for temporary files: not trusted.
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter


def compute_rouge(
    prediction: str, reference: str, split_units: UnitSplitter = split_characters
) -> dict[str, RougeScore]:
    """Return ROUGE-1, -2 and -L by ROUGE_VARIANTS. All are 0 if one of the texts is empty."""
    prediction_units, reference_units = split_units(prediction), split_units(reference)
    if not prediction_units or not reference_units:
        return dict.fromkeys(ROUGE_VARIANTS, RougeScore(0.0, 0.0, 0.0))
    is_long = len(prediction_units) * len(reference_units) > _MAX_TABLE_CELLS
    library_scores = _rouge_scorer(ROUGE_VARIANTS[:2] if is_long else ROUGE_VARIANTS).get_scores(
        " ".join(prediction_units), " ".join(reference_units)
    )[0]
    if is_long:
        lcs_length = _lcs_length(prediction_units, reference_units)
        precision, recall = lcs_length / len(prediction_units), lcs_length / len(reference_units)
        library_scores["rouge-l"] = {
            "p": precision,
            "r": recall,
            "f": 2 * precision * recall / (precision + recall + 1e-8),
        }
    return {
        variant: RougeScore(*(library_scores[f"rouge-{variant}"][key] for key in ("p", "r", "f")))
        for variant in ROUGE_VARIANTS
    }


@functools.cache
def _rouge_scorer(variants: tuple[str, ...]) -> Any:
    return _import_without_warnings("rouge_chinese").Rouge(
        metrics=[f"rouge-{variant}" for variant in variants]
    )


def _lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the LCS, with a row of the table in the bits of an int (Hyyrö 2004)."""
    position_masks: dict[str, int] = {}
    for index, unit in enumerate(first):
        position_masks[unit] = position_masks.get(unit, 0) | 1 << index
    all_ones = (1 << len(first)) - 1
    row = all_ones
    for unit in second:
        matches = row & position_masks.get(unit, 0)
        row = (row + matches | row - matches) & all_ones
    return len(first) - bin(row).count("1")


def bootstrap_mean_interval(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Return the mean over N examples and the ends of its 95 % interval: values[N, …] → [3, …].

    The interval is that of the percentile bootstrap (Efron 1979): NUM_RESAMPLES draws of N examples
    with replacement, the same draws for all columns.
    """
    generator = np.random.default_rng(seed)
    means = np.stack(
        [
            values[generator.integers(len(values), size=len(values))].mean(0)
            for _ in range(NUM_RESAMPLES)
        ]
    )
    return np.stack([values.mean(0), *np.percentile(means, (2.5, 97.5), axis=0)])
