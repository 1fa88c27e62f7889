"""Bradley–Terry ratings (1952): the strengths under which all games are most likely.

Model i beats model j with probability 1 / (1 + exp(s_j - s_i)). A tie is half a win to each. To the
games comes one virtual tie, shared equally by all pairs of models: with 3 pairs, a third of a tie
for each. So the strengths stay finite if a model has won all of its games, or if two groups of
models never met. The ratings are 400 / ln 10 times the strengths, which is the scale of Elo, with
the mean 1000.
"""

import math

import numpy as np

from evaluate.tournament.elo import BASE, SCALE, START
from evaluate.tournament.games import INTERVAL_PERCENTILES, NUM_RESAMPLES, Games

MAX_ITERATIONS = 200
# Strengths that change by less are final.
_TOLERANCE = 1e-9


def compute_bradley_terry(games: Games) -> np.ndarray:
    """Return the ratings[M]."""
    return fit_bradley_terry(games.count_wins())


def bradley_terry_interval(games: Games, seed: int) -> np.ndarray:
    """Return the ends[2, M] of the 95 % intervals: a percentile bootstrap over questions."""
    generator = np.random.default_rng(seed)
    num_units = int(games.unit.max()) + 1
    wins = np.empty((NUM_RESAMPLES, games.num_models, games.num_models))
    for resample in wins:
        draws = generator.integers(num_units, size=num_units)
        resample[:] = games.count_wins(np.bincount(draws, minlength=num_units)[games.unit])
    return np.percentile(fit_bradley_terry(wins), INTERVAL_PERCENTILES, axis=0)


def fit_bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Return the ratings[…, M] for wins[…, M, M] of the row's model over the column's."""
    num_models = wins.shape[-1]
    num_pairs = num_models * (num_models - 1) / 2
    # Half a tie's share to each of the two.
    wins = wins + (1 - np.eye(num_models)) / (2 * num_pairs)
    games = wins + wins.swapaxes(-1, -2)
    strengths = np.zeros(wins.shape[:-1])
    # Newton's method on the log-likelihood.
    for _ in range(MAX_ITERATIONS):
        leads = strengths[..., :, None] - strengths[..., None, :]
        # The logistic function, in a form that does not overflow.
        expected_scores = (1 + np.tanh(leads / 2)) / 2
        gradient = (wins - games * expected_scores).sum(-1)
        weights = games * expected_scores * (1 - expected_scores)
        information = np.eye(num_models) * weights.sum(-1)[..., None] - weights
        # All strengths may grow by the same number. The constant makes the matrix regular, and as
        # the gradient sums to 0, leaves the mean of the strengths at 0.
        newton_step = np.linalg.solve(information + 1 / num_models, gradient[..., None])[..., 0]
        # Along the step, the curvature changes by at most the factor exp(d) where d is the largest
        # difference between two of its entries. With ln(1 + d) / d of it the likelihood never
        # falls, and near the solution that is the whole step.
        largest_change = np.ptp(newton_step, axis=-1)
        damping = np.log1p(largest_change) / np.maximum(largest_change, _TOLERANCE)
        strengths = strengths + damping[..., None] * newton_step
        if largest_change.max() < _TOLERANCE:
            break
    return START + SCALE / math.log(BASE) * strengths
