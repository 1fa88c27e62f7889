"""Rows that are counted from lengths alone: as many as training packs."""

from pathlib import Path

import numpy as np
import pytest

from data.batching.examples import Example
from data.batching.packed_rows import PACKING_WINDOW, PackedPlan
from data.lengths import packing
from data.lengths.packing import count_packed_rows

ROW_LENGTH = 512


class LengthsOnly:
    """Examples of certain lengths, which are planned and never read."""

    num_truncated = 0

    def __init__(self, lengths: np.ndarray) -> None:
        self._lengths = lengths

    def lengths(self, epoch: int) -> np.ndarray:
        return self._lengths

    def example(self, index: int, epoch: int) -> Example:
        raise NotImplementedError


def count_rows_of_training(lengths: np.ndarray, folder: Path) -> int:
    """Return the rows of the first epoch of a training run on examples of these lengths."""
    plan = PackedPlan([LengthsOnly(lengths)], (1.0,), seed=0, length=ROW_LENGTH, folder=folder)
    return plan.num_rows(0)


def draw_lengths(num_examples: int) -> np.ndarray:
    """Return random lengths, many short and some that fill a row, ascending; a few are 0."""
    rng = np.random.default_rng(num_examples)
    return np.sort(np.minimum(rng.gamma(1.2, 130, num_examples).astype(np.int64), ROW_LENGTH))


@pytest.mark.slow
@pytest.mark.parametrize("num_examples", [0, 1, 700, PACKING_WINDOW])
def test_one_window_has_the_rows_of_training(num_examples: int, tmp_path: Path) -> None:
    """Prevents other rows than those of training where chance plays no part."""
    lengths = draw_lengths(num_examples)
    counts = np.bincount(lengths, minlength=ROW_LENGTH + 1)
    expected = count_rows_of_training(lengths, tmp_path) if lengths.any() else 0
    assert count_packed_rows(counts, ROW_LENGTH) == expected


@pytest.mark.slow
@pytest.mark.parametrize("max_windows", [256, 2])
def test_several_windows_have_as_many_rows_as_training(
    max_windows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents windows of examples of similar lengths, which a sorted corpus would give."""
    monkeypatch.setattr(packing, "MAX_WINDOWS", max_windows)
    lengths = draw_lengths(4 * PACKING_WINDOW + 99)
    counts = np.bincount(lengths, minlength=ROW_LENGTH + 1)
    expected = count_rows_of_training(lengths, tmp_path)
    # Of the random part, the mean length differs too.
    tolerance = 0.002 if max_windows == 256 else 0.02
    assert count_packed_rows(counts, ROW_LENGTH) == pytest.approx(expected, rel=tolerance)
