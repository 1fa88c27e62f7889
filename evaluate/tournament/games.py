"""Comparisons as arrays, which ratings are computed from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluate.tournament.battles import Comparison

# Shuffled orders of Elo, and resamples of the bootstrap.
NUM_RESAMPLES = 1000
# The percentiles of a 95 % interval.
INTERVAL_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True)
class Games:
    """N games between models, which are numbered from 0."""

    first: np.ndarray
    """int64[N]: a model."""
    second: np.ndarray
    """int64[N]: its opponent."""
    score: np.ndarray
    """float64[N]: of the first model: 1 for a win, 0.5 for a tie, 0 for a loss."""
    unit: np.ndarray
    """int64[N]: the question of each game, numbered from 0; the bootstrap draws whole questions."""
    num_models: int

    def count_wins(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Return wins[M, M] of the row's model over the column's; a tie is half a win to each.

        `weights[N]` says how often each game counts; None: once.
        """
        weights = np.ones(len(self.score)) if weights is None else weights
        num_cells = self.num_models**2
        first_cells = self.first * self.num_models + self.second
        second_cells = self.second * self.num_models + self.first
        wins = np.bincount(first_cells, weights * self.score, num_cells)
        wins += np.bincount(second_cells, weights * (1 - self.score), num_cells)
        return wins.reshape(self.num_models, self.num_models)


def build_games(comparisons: Sequence[Comparison], names: Sequence[str]) -> Games:
    """Return the games of comparisons, in sequence; `names` numbers the models.

    Without questions, or with a single one, every comparison is a unit of its own.
    """
    indices = {name: index for index, name in enumerate(names)}
    pairs = np.array(
        [[indices[model] for model in comparison.models] for comparison in comparisons]
    )
    scores = []
    for comparison in comparisons:
        winner = comparison.winning_model
        scores.append(0.5 if winner is None else float(winner == comparison.models[0]))
    keys = [str(comparison.votes[0].question_id) for comparison in comparisons]
    _, units = np.unique(keys, return_inverse=True)
    if units.max() == 0:
        units = np.arange(len(comparisons))
    return Games(pairs[:, 0], pairs[:, 1], np.array(scores), units, len(names))
