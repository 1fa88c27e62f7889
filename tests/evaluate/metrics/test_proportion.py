"""Wilson's interval, against a solution of its defining equation."""

import pytest

from evaluate.metrics.proportion import Proportion, compare_with_trivial, mean_share


@pytest.mark.parametrize(("count", "total"), [(0, 1), (1, 1), (7, 20), (500, 1743), (3.5, 9)])
def test_the_ends_solve_the_equation_of_the_score_test(count: float, total: int) -> None:
    """An interval that is not Wilson's: its ends p solve (rate - p)² = z² p (1 - p) / n."""
    proportion = Proportion(count, total)
    for end in proportion.interval:
        assert (proportion.rate - end) ** 2 == pytest.approx(
            1.96**2 * end * (1 - end) / total, rel=1e-3, abs=1e-12
        )
    low, high = proportion.interval
    assert low <= proportion.rate <= high
    assert low < high


def test_no_questions() -> None:
    """A division by zero, or certainty about nothing."""
    assert Proportion(0, 0).rate == 0
    assert Proportion(0, 0).interval == (0, 1)
    assert Proportion(1, 2) + Proportion(0, 2) == Proportion(1, 4)
    assert str(Proportion(1, 4)) == "25.0 % (4.6 – 69.9)"


def test_a_rate_is_above_a_trivial_one_only_beyond_its_interval() -> None:
    """Prevents a verdict from the rates alone, and 0 of n questions above a method that gets 0."""
    figure = Proportion(50, 100).to_json()
    assert compare_with_trivial(figure, figure["low"] - 0.01) == "above"
    assert compare_with_trivial(figure, 0.45) == "not told apart from"
    assert compare_with_trivial(figure, figure["high"] + 0.01) == "below"
    # Rounding left a lower end of 1e-18 for many n.
    for total in range(1, 2000):
        none, all_right = Proportion(0, total), Proportion(total, total)
        assert none.interval[0] == 0 and all_right.interval[1] == 1
        assert compare_with_trivial(none.to_json(), 0.0) == "not told apart from"


def test_answers_without_a_share_do_not_count() -> None:
    """Prevents empty answers from lowering the mean."""
    assert mean_share([None, 0.5, 1.0, None]) == Proportion(1.5, 2)
    assert mean_share([None]) == Proportion(0, 0)
