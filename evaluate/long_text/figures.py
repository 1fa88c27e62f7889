"""The figures of long text: losses by past and by position, and what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from evaluate.metrics.rouge import bootstrap_mean_interval

# A mean with the ends of its interval.
Interval = tuple[float, float, float]


@dataclass(frozen=True)
class LongTextFigures:
    """The figures of long text; all intervals are over documents."""

    pasts: tuple[int, ...]
    losses: list[Interval]
    """Of the same tokens with each past, in nats per token."""
    gains: list[Interval]
    """How much lower a loss is than that with the past before it; none for the first past."""
    bits: list[float]
    """Bits per character with each past."""
    position_ranges: list[tuple[int, int]]
    """First position, and the one after the last: the number of ids before a token."""
    position_losses: list[Interval]

    @property
    def useful_past(self) -> int:
        """Return the past up to which each one gains over the one before, beyond its interval."""
        useful = self.pasts[0]
        for past, (_, low, _) in zip(self.pasts[1:], self.gains, strict=True):
            if low <= 0:
                break
            useful = past
        return useful

    @property
    def harmful_past(self) -> int | None:
        """Return the shortest past that is worse than the one before, beyond its interval."""
        for past, (_, _, high) in zip(self.pasts[1:], self.gains, strict=True):
            if high < 0:
                return past
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a results file."""
        return {
            "useful_past": self.useful_past,
            "harmful_past": self.harmful_past,
            "by_past": {
                str(past): {
                    "loss": _to_json(self.losses[number]),
                    "bits_per_character": self.bits[number],
                    **({"gain": _to_json(self.gains[number - 1])} if number else {}),
                }
                for number, past in enumerate(self.pasts)
            },
            "by_position": {
                f"{start}-{stop - 1}": _to_json(loss)
                for (start, stop), loss in zip(
                    self.position_ranges, self.position_losses, strict=True
                )
            },
        }


def compute_figures(
    pasts: Sequence[int], by_past: np.ndarray, by_position: np.ndarray, bits: list[float]
) -> LongTextFigures:
    """Return the figures of D documents.

    Args:
        pasts: the pasts, ascending.
        by_past: mean loss of each document with each past, float64[D, pasts].
        by_position: mean loss of each document at each position from 1 on, float64[D, T].
        bits: bits per character with each past.
    """
    ranges = _position_ranges(by_position.shape[1] + 1)
    in_ranges = [by_position[:, start - 1 : stop - 1].mean(1) for start, stop in ranges]
    gains = by_past[:, :-1] - by_past[:, 1:]
    return LongTextFigures(
        pasts=tuple(pasts),
        losses=_intervals(by_past),
        gains=_intervals(gains),
        bits=bits,
        position_ranges=ranges,
        position_losses=_intervals(np.stack(in_ranges, axis=1)),
    )


def _position_ranges(num_positions: int) -> list[tuple[int, int]]:
    """Return ranges of positions: 1 to 15, 16 to 31, and each twice as long as the one before."""
    edges = [1, min(16, num_positions)]
    while edges[-1] < num_positions:
        edges.append(min(2 * edges[-1], num_positions))
    return list(pairwise(edges))


def _intervals(values: np.ndarray) -> list[Interval]:
    """Return mean and interval of each column of values[documents, columns]."""
    return [(mean, low, high) for mean, low, high in bootstrap_mean_interval(values).T.tolist()]


def _to_json(interval: Interval) -> dict[str, float]:
    return dict(zip(("mean", "low", "high"), interval, strict=True))
