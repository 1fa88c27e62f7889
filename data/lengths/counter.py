"""Count lengths exactly in memory that does not grow with their number; quantiles as NumPy's."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

# Shorter lengths have an entry in an array each; longer ones, which are few, in a dictionary.
ARRAY_LENGTHS = 1 << 16


class LengthCounter:
    """How often each length occurs."""

    def __init__(self) -> None:
        """Nothing is counted yet."""
        self._counts = np.zeros(ARRAY_LENGTHS, np.int64)
        self._long_counts: Counter[int] = Counter()

    def add(self, lengths: np.ndarray, repeats: np.ndarray) -> None:
        """Count lengths, int64[n], none of them negative, each as often as `repeats[n]` says."""
        is_long = lengths >= ARRAY_LENGTHS
        np.add.at(self._counts, lengths[~is_long], repeats[~is_long])
        for length, count in zip(lengths[is_long].tolist(), repeats[is_long].tolist(), strict=True):
            if count:
                self._long_counts[length] += count

    def histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lengths that occur, ascending, and how often each does, int64[n] each."""
        short_lengths = np.flatnonzero(self._counts)
        long_lengths = np.array(sorted(self._long_counts), dtype=np.int64)
        long_counts = np.array([self._long_counts[length] for length in long_lengths.tolist()])
        return (
            np.concatenate([short_lengths, long_lengths]),
            np.concatenate([self._counts[short_lengths], long_counts]).astype(np.int64),
        )

    @property
    def num_lengths(self) -> int:
        """Return how many lengths were counted."""
        return int(self._counts.sum()) + self._long_counts.total()

    @property
    def total(self) -> int:
        """Return the sum of all lengths."""
        lengths, counts = self.histogram()
        return int((lengths * counts).sum())

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the quantiles of all lengths, at least one, as `numpy.quantile` does by default.

        A quantile between two lengths is interpolated linearly.
        """
        lengths, counts = self.histogram()
        # Of the lengths in ascending order, number i is the first entry whose end lies behind i.
        ends = np.cumsum(counts)
        positions = (ends[-1] - 1) * np.array(shares)
        below = np.floor(positions).astype(np.int64)
        above = np.minimum(below + 1, ends[-1] - 1)
        low = lengths[np.searchsorted(ends, below, side="right")]
        high = lengths[np.searchsorted(ends, above, side="right")]
        fractions = positions - below
        # From the nearer end, as NumPy does, so that the results are equal to the last bit.
        from_low = low + (high - low) * fractions
        from_high = high - (high - low) * (1 - fractions)
        quantiles: list[float] = np.where(fractions < 0.5, from_low, from_high).tolist()
        return quantiles
