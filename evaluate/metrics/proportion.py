"""The fraction of questions that are answered rightly, with Wilson's interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# The normal quantile of a two-sided 95 % interval.
_Z_95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Proportion:
    """`count` of `total` questions, with the 95 % interval of Wilson (1927).

    Unlike the normal approximation, the interval stays within 0 and 1, and is not empty if all
    questions, or none, are answered rightly.
    """

    count: float
    """A whole number, unless answers are scored in parts, as by F1: then the sum of the scores."""
    total: int

    @property
    def rate(self) -> float:
        """Return the fraction, 0 of no questions."""
        return self.count / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Return the ends of the interval; (0, 1) of no questions."""
        if not self.total:
            return 0.0, 1.0
        # Wilson's formula with n and z² / n: center and half width, both over 1 + z² / n.
        ratio = _Z_95**2 / self.total
        center = self.rate + ratio / 2
        half_width = _Z_95 * math.sqrt((self.rate * (1 - self.rate) + ratio / 4) / self.total)
        low = (center - half_width) / (1 + ratio)
        high = (center + half_width) / (1 + ratio)
        # Exactly 0 and 1 at the ends, where rounding leaves some 1e-18.
        return (low if self.count > 0 else 0.0, high if self.count < self.total else 1.0)

    def __add__(self, other: "Proportion") -> "Proportion":
        return Proportion(self.count + other.count, self.total + other.total)

    def __str__(self) -> str:
        """Return a figure to print, such as `41.2 % (38.9 – 43.5)`."""
        low, high = self.interval
        return f"{100 * self.rate:.1f} % ({100 * low:.1f} – {100 * high:.1f})"

    def to_json(self) -> dict[str, float]:
        """Return the figures of a results file."""
        low, high = self.interval
        return {"rate": self.rate, "low": low, "high": high, "questions": self.total}


def mean_share(shares: Sequence[float | None]) -> Proportion:
    """Return the mean of shares from 0 to 1; those that are None do not count."""
    known = [share for share in shares if share is not None]
    return Proportion(sum(known), len(known))


def compare_with_trivial(figure: dict[str, float], trivial_rate: float) -> str:
    """Return `above`, `below` or `not told apart from`: a rate beside that of a trivial method.

    `figure` is a rate with its interval, see `Proportion.to_json`. A rate whose interval contains
    that of the trivial method is not told apart from it.
    """
    if figure["low"] > trivial_rate:
        return "above"
    if figure["high"] < trivial_rate:
        return "below"
    return "not told apart from"
