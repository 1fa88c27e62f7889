"""The difference of two rates on the same questions, with Newcombe's interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.metrics.proportion import Proportion


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The rate of one way of asking minus that of another, from questions asked both ways.

    The fields count the questions that are answered rightly both ways, the first way only, the
    second way only, and neither way.
    """

    both: int
    first_only: int
    second_only: int
    neither: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "PairedDifference":
        """Return the difference of the rates of two lists of outcomes of the same questions."""
        pairs = list(zip(first, second, strict=True))
        return cls(
            pairs.count((True, True)),
            pairs.count((True, False)),
            pairs.count((False, True)),
            pairs.count((False, False)),
        )

    @property
    def total(self) -> int:
        """Return the number of questions."""
        return self.both + self.first_only + self.second_only + self.neither

    @property
    def difference(self) -> float:
        """Return the first rate minus the second, 0 of no questions."""
        return (self.first_only - self.second_only) / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the ends of the 95 % interval; (-1, 1) of no questions.

        Method 10 of Newcombe (1998, Statistics in Medicine 17, 2635): Wilson's intervals of both
        rates, combined with their correlation.
        """
        if not self.total:
            return -1.0, 1.0
        first = Proportion(self.both + self.first_only, self.total)
        second = Proportion(self.both + self.second_only, self.total)
        correlation = self._correlation()
        (first_low, first_high), (second_low, second_high) = first.interval, second.interval
        below = _combine(first.rate - first_low, second_high - second.rate, correlation)
        above = _combine(first_high - first.rate, second.rate - second_low, correlation)
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    def _correlation(self) -> float:
        """Return the phi coefficient of the two outcomes, corrected for continuity if positive."""
        determinant = self.both * self.neither - self.first_only * self.second_only
        margins = (
            (self.both + self.first_only)
            * (self.second_only + self.neither)
            * (self.both + self.second_only)
            * (self.first_only + self.neither)
        )
        if margins == 0:
            return 0.0
        corrected = max(determinant - self.total / 2, 0) if determinant > 0 else determinant
        return corrected / math.sqrt(margins)

    def __str__(self) -> str:
        """Return a figure to print, in percentage points, such as `+12.5 (+8.1 – +16.9)`."""
        low, high = self.interval
        return f"{100 * self.difference:+.1f} ({100 * low:+.1f} – {100 * high:+.1f})"

    def to_json(self) -> dict[str, float]:
        """Return the figures of a results file."""
        low, high = self.interval
        return {"mean": self.difference, "low": low, "high": high}


def _combine(first: float, second: float, correlation: float) -> float:
    """Return the length of the difference of two deviations that are correlated."""
    return math.sqrt(max(0.0, first**2 - 2 * correlation * first * second + second**2))
