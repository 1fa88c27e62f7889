"""Bradley–Terry, compared with minorise–maximise and with closed forms."""

import math

import numpy as np
import pytest

from evaluate.tournament.bradley_terry import (
    bradley_terry_interval,
    compute_bradley_terry,
    fit_bradley_terry,
)
from evaluate.tournament.games import Games

POINTS = 400 / math.log(10)


def fit_by_minorize_maximize(wins: np.ndarray, iterations: int = 3_000) -> np.ndarray:
    """Return the ratings by Hunter's algorithm (2004), with the virtual tie of the module."""
    num_models = len(wins)
    share = 1 / (num_models * (num_models - 1) / 2)
    wins = wins + share / 2 * (1 - np.eye(num_models))
    games = wins + wins.T
    strengths = np.ones(num_models)
    for _ in range(iterations):
        denominators = games / (strengths[:, None] + strengths[None, :])
        strengths = wins.sum(1) / denominators.sum(1)
        strengths /= np.exp(np.log(strengths).mean())
    return 1000 + POINTS * np.log(strengths)


@pytest.mark.slow
@pytest.mark.parametrize("num_models", [2, 3, 6])
def test_ratings_maximize_likelihood(num_models: int) -> None:
    """A solver that stops early, a wrong scale, ties that count for one side."""
    generator = np.random.default_rng(num_models)
    wins = generator.integers(1, 12, (num_models, num_models)) / 2.0
    np.fill_diagonal(wins, 0)
    ratings = fit_bradley_terry(wins)
    assert ratings == pytest.approx(fit_by_minorize_maximize(wins), abs=1e-3)
    assert ratings.mean() == pytest.approx(1000)


def test_two_models_have_closed_form() -> None:
    """A virtual tie of another weight than the documented one."""
    for won, lost in ((7, 3), (5, 0), (0, 0), (100_000, 0)):
        ratings = fit_bradley_terry(np.array([[0.0, won], [lost, 0.0]]))
        expected = POINTS * math.log((won + 0.5) / (lost + 0.5))
        assert ratings[0] - ratings[1] == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_hopeless_chain_is_finite() -> None:
    """Overflow, or a step that leads away, where every model beat the next one every time."""
    num_models = 50
    wins = np.diag(np.full(num_models - 1, 2000.0), k=1)
    ratings = fit_bradley_terry(wins)
    assert np.isfinite(ratings).all() and (np.diff(ratings) < -100).all()


def test_contradictory_wins_are_solved() -> None:
    """Whole Newton steps, which on these numbers end in a singular matrix."""
    wins = np.zeros((7, 7))
    for row, column, count in (
        *((0, 2, 1), (0, 3, 1), (0, 4, 10), (0, 6, 100), (1, 0, 1), (1, 5, 1), (2, 1, 100)),
        *((2, 3, 10_000), (3, 5, 100), (3, 6, 10_000), (4, 2, 1), (4, 5, 1000), (5, 1, 10_000)),
        *((6, 1, 1), (6, 2, 1), (6, 5, 1000)),
    ):
        wins[row, column] = count
    strengths = fit_bradley_terry(wins) / POINTS
    # At the maximum every model has as many wins as expected.
    wins += (1 - np.eye(7)) / 42
    expected = (wins + wins.T) / (1 + np.exp(strengths[None, :] - strengths[:, None]))
    np.fill_diagonal(expected, 0)
    assert expected.sum(1) == pytest.approx(wins.sum(1))


@pytest.mark.slow
def test_batch_equals_single_fits() -> None:
    """Resamples that influence each other."""
    wins = np.random.default_rng(0).integers(0, 9, (5, 4, 4)).astype(float)
    wins[0, 0] += 1000
    for index in range(4):
        wins[:, index, index] = 0
    assert fit_bradley_terry(wins) == pytest.approx(np.stack([fit_bradley_terry(w) for w in wins]))


@pytest.mark.slow
def test_bootstrap_draws_whole_questions() -> None:
    """Intervals that are too narrow because the verdicts of one question are drawn separately."""
    generator = np.random.default_rng(5)
    score = np.repeat(generator.integers(0, 2, 40), 10).astype(float)
    first, second = np.zeros(400, dtype=int), np.ones(400, dtype=int)

    def width(units: np.ndarray) -> float:
        low, high = bradley_terry_interval(Games(first, second, score, units, 2), seed=0)
        return float(high[0] - low[0])

    by_question, by_comparison = width(np.repeat(np.arange(40), 10)), width(np.arange(400))
    # The standard error grows with the root of the size of the questions.
    assert by_question / by_comparison == pytest.approx(math.sqrt(10), rel=0.1)
    games = Games(first, second, score, np.arange(400), 2)
    low, high = bradley_terry_interval(games, seed=0)
    won = score.sum()
    deviation = POINTS * math.sqrt(1 / won + 1 / (400 - won))
    # The rating of one model is half of the difference.
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * deviation / 2, rel=0.1)
    assert low[0] < compute_bradley_terry(games)[0] < high[0]
