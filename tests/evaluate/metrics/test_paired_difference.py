"""The interval of a difference of paired rates covers the true difference."""

import itertools
import math

import pytest

from evaluate.metrics.paired_difference import PairedDifference
from evaluate.metrics.proportion import Proportion


def _coverage(probabilities: tuple[float, ...], total: int) -> float:
    """Return the probability of an interval that has the true difference, over all tables."""
    _, first_only, second_only, _ = probabilities
    covered = 0.0
    for both, first, second in itertools.product(range(total + 1), repeat=3):
        neither = total - both - first - second
        if neither < 0:
            continue
        table = (both, first, second, neither)
        log_probability = math.lgamma(total + 1) + sum(
            count * math.log(probability) - math.lgamma(count + 1)
            for count, probability in zip(table, probabilities, strict=True)
        )
        low, high = PairedDifference(*table).interval
        if low <= first_only - second_only <= high:
            covered += math.exp(log_probability)
    return covered


@pytest.mark.slow
@pytest.mark.parametrize(
    "probabilities",
    [(0.4, 0.1, 0.1, 0.4), (0.25, 0.25, 0.25, 0.25), (0.1, 0.6, 0.1, 0.2), (0.6, 0.2, 0.05, 0.15)],
)
def test_the_interval_covers_in_95_of_100_samples(probabilities: tuple[float, ...]) -> None:
    """A correlation with the wrong sign, ends of the wrong interval, one rate minus itself."""
    assert 0.93 < _coverage(probabilities, 24) < 0.985


def test_the_interval_of_rates_at_their_ends_is_not_empty() -> None:
    """A division by a margin of zero, and intervals without width at 0 and at 100 %."""
    low, high = PairedDifference(0, 50, 0, 0).interval
    assert (0.85 < low < 1, high) == (True, 1.0)
    low, high = PairedDifference(50, 0, 0, 0).interval
    assert -0.1 < low < 0 < high < 0.1
    assert PairedDifference(0, 0, 0, 0).interval == (-1.0, 1.0)


def test_uncorrelated_outcomes_have_the_interval_of_independent_rates() -> None:
    """Deviations of the two rates that are combined in another way than by their squares."""
    result = PairedDifference(10, 10, 10, 10)
    low, high = Proportion(20, 40).interval
    expected = math.hypot(0.5 - low, high - 0.5)
    assert result.interval == pytest.approx((-expected, expected))


def test_the_pairs_are_counted() -> None:
    """Two ways of asking that are mixed up, and pairs that are not of one question."""
    result = PairedDifference.of([True, True, False, True], [True, False, True, False])
    assert (result.both, result.first_only, result.second_only, result.neither) == (1, 2, 1, 0)
    assert result.difference == 0.25
    with pytest.raises(ValueError, match="shorter"):
        PairedDifference.of([True], [])
