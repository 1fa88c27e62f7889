"""Counters of lengths: as exact as all lengths in a list."""

import numpy as np
import pytest

from data.lengths.counter import ARRAY_LENGTHS, LengthCounter
from data.lengths.survey import QUANTILES


@pytest.mark.parametrize("seed", range(30))
def test_quantiles_are_those_of_numpy(seed: int) -> None:
    """Prevents quantiles that differ from NumPy's, for few, equal, repeated and long lengths."""
    rng = np.random.default_rng(seed)
    highest = int(rng.choice([1, 3, 400, 2 * ARRAY_LENGTHS, 1 << 40]))
    lengths = rng.integers(0, highest, rng.integers(1, 400))
    repeats = rng.integers(0, 3, len(lengths))
    # At least one length is counted.
    repeats[0] += 1
    counter = LengthCounter()
    for part in np.array_split(np.arange(len(lengths)), 3):
        counter.add(lengths[part], repeats[part])
    listed = np.repeat(lengths, repeats)
    shares = [*QUANTILES, 0, *rng.random(100)]
    assert counter.quantiles(shares) == np.quantile(listed, shares).tolist()
    assert counter.num_lengths == len(listed) and counter.total == listed.sum()
    values, counts = counter.histogram()
    expected_values, expected_counts = np.unique(listed, return_counts=True)
    assert np.array_equal(values, expected_values) and np.array_equal(counts, expected_counts)
