"""Elo ratings in sequence, and how far they depend on the sequence."""

import numpy as np

from evaluate.tournament.games import INTERVAL_PERCENTILES, NUM_RESAMPLES, Games

K = 32.0
START = 1000.0
# A lead of SCALE points means odds of BASE to 1.
SCALE = 400.0
BASE = 10.0
# Numbers of shuffled orders that are in memory at a time.
_MAX_NUMBERS = 1 << 25


def compute_elo(games: Games) -> np.ndarray:
    """Return the ratings[M] after all games, played in sequence."""
    return _play(games, np.arange(len(games.score))[None])[0]


def elo_interval(games: Games, seed: int) -> np.ndarray:
    """Return the ends[2, M] of the 95 % range of the ratings over shuffled orders of the games."""
    num_games = len(games.score)
    generator = np.random.default_rng(seed)
    block_size = max(1, _MAX_NUMBERS // num_games)
    ratings = []
    for start in range(0, NUM_RESAMPLES, block_size):
        num_orders = min(block_size, NUM_RESAMPLES - start)
        games_in_sequence = np.arange(num_games, dtype=np.int32)
        in_sequence = np.broadcast_to(games_in_sequence, (num_orders, num_games))
        ratings.append(_play(games, generator.permuted(in_sequence, axis=1)))
    return np.percentile(np.concatenate(ratings), INTERVAL_PERCENTILES, axis=0)


def _play(games: Games, orders: np.ndarray) -> np.ndarray:
    """Return the ratings[S, M] after the games, in each of the orders[S, N]."""
    ratings = np.full((len(orders), games.num_models), START)
    rows = np.arange(len(orders))
    for indices in orders.T:
        first, second = games.first[indices], games.second[indices]
        lead_of_second = ratings[rows, second] - ratings[rows, first]
        expected_score = 1 / (1 + BASE ** (lead_of_second / SCALE))
        change = K * (games.score[indices] - expected_score)
        ratings[rows, first] += change
        ratings[rows, second] -= change
    return ratings
