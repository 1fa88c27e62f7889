"""ROUGE-1, -2 and -L of a text against a reference, on characters and on jieba words, with rouge-chinese (Lin 2004).

Characters: whitespace removed, lower-cased, every character a unit: the convention of the published CSL and LCSTS
figures. Words: what jieba cuts (default mode) out of the lower-cased text, whitespace left out. As rouge-chinese does it,
an n-gram counts once however often it occurs (sets, not multisets), and ROUGE-L is the longest common subsequence of the
whole texts. Figures on other units, or from a package that counts otherwise, do not compare.
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

KINDS = ("1", "2", "l")
RESAMPLES = 1000
# Up to so many cells rouge-chinese fills a dictionary of them (100 bytes each) for the longest common subsequence.
_TABLE_CELLS = 1 << 18

Units = Callable[[str], list[str]]


@dataclass(frozen=True, slots=True)
class Rouge:
    """One ROUGE figure, each part from 0 to 1."""

    precision: float
    recall: float
    f: float


def characters(text: str) -> list[str]:
    """The characters of a text, lower-cased, without whitespace."""
    return list("".join(text.lower().split()))


def words(text: str) -> list[str]:
    """The words jieba finds in a text, lower-cased, without whitespace."""
    return [word for word in _segmenter().cut(text.lower()) if not word.isspace()]


UNITS: dict[str, Units] = {"characters": characters, "jieba words": words}


def _import(name: str) -> Any:
    """Both packages have escapes in their source that newer Pythons warn of when they first compile it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


@functools.cache
def _segmenter() -> Any:
    jieba = _import("jieba")
    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    # It would read whatever lies under its cache's name in the folder for temporary files, which all users share.
    with tempfile.TemporaryDirectory() as folder:
        segmenter.tmp_dir = folder
        segmenter.initialize()
    return segmenter


def rouge(prediction: str, reference: str, units: Units = characters) -> dict[str, Rouge]:
    """ROUGE-1, -2 and -L, keyed as in `KINDS`. All are 0 where one of the texts is empty."""
    said, wanted = units(prediction), units(reference)
    if not said or not wanted:
        return dict.fromkeys(KINDS, Rouge(0.0, 0.0, 0.0))
    long = len(said) * len(wanted) > _TABLE_CELLS
    found = _library(KINDS[:2] if long else KINDS).get_scores(" ".join(said), " ".join(wanted))[0]
    if long:
        common = _common_subsequence(said, wanted)
        precision, recall = common / len(said), common / len(wanted)
        found["rouge-l"] = {"p": precision, "r": recall, "f": 2 * precision * recall / (precision + recall + 1e-8)}
    return {kind: Rouge(figures["p"], figures["r"], figures["f"])
            for kind, figures in ((kind, found[f"rouge-{kind}"]) for kind in KINDS)}


@functools.cache
def _library(kinds: tuple[str, ...]) -> Any:
    return _import("rouge_chinese").Rouge(metrics=[f"rouge-{kind}" for kind in kinds])


def _common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence, a row of the table in the bits of one number (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, unit in enumerate(first):
        places[unit] = places.get(unit, 0) | 1 << index
    full = (1 << len(first)) - 1
    row = full
    for unit in second:
        matches = row & places.get(unit, 0)
        row = (row + matches | row - matches) & full
    return len(first) - bin(row).count("1")


def mean_and_interval(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """values[N, …] → [3, …]: the mean over N examples and the ends of its 95 % interval.

    The interval is the percentile bootstrap's (Efron 1979): `RESAMPLES` draws of N examples with replacement from a seed,
    the same draws for every column.
    """
    draw = np.random.default_rng(seed)
    means = np.stack([values[draw.integers(len(values), size=len(values))].mean(0) for _ in range(RESAMPLES)])
    return np.stack([values.mean(0), *np.percentile(means, (2.5, 97.5), axis=0)])
