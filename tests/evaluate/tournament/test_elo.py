"""Elo in sequence, compared with a plain loop."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from evaluate.tournament.battles import combine_votes, model_names, read_battles
from evaluate.tournament.elo import compute_elo, elo_interval
from evaluate.tournament.games import Games, build_games


def elo_by_loop(battles: Sequence[dict[str, object]]) -> dict[str, float]:
    """Return the ratings as the textbook has them, battle by battle."""
    ratings: dict[object, float] = defaultdict(lambda: 1000.0)
    for battle in battles:
        a, b = battle["model_a"], battle["model_b"]
        score_a, score_b = battle["score_a"], battle["score_b"]
        won = (score_a > score_b) + 0.5 * (score_a == score_b)  # type: ignore[operator]
        q_a, q_b = 10 ** (ratings[a] / 400), 10 ** (ratings[b] / 400)
        ratings[a] += 32 * (won - q_a / (q_a + q_b))
        ratings[b] += 32 * ((1 - won) - q_b / (q_a + q_b))
    return dict(ratings)  # type: ignore[arg-type]


def test_recorded_battles_give_published_elo(shared: Path) -> None:
    """Ratings that differ from the convention's (K, start, ties, sequence) in the second digit."""
    path = shared / "data/eval/battles_excerpt.json"
    battles = read_battles([path])
    names = model_names(battles)
    ratings = compute_elo(build_games(combine_votes(battles), names))
    expected = elo_by_loop(json.loads(path.read_text(encoding="utf-8"))["battles"])
    assert set(expected) == set(names) and len(names) == 4
    for name, rating in zip(names, ratings, strict=True):
        assert f"{rating:.2f}" == f"{expected[name]:.2f}"
    assert ratings.sum() == pytest.approx(4000)


@pytest.mark.slow
def test_interval_covers_orders() -> None:
    """An interval of resampled battles instead of shuffled ones, or one that no seed repeats."""
    generator = random.Random(1)
    rows = [generator.sample(range(3), 2) for _ in range(60)]
    scores = [generator.choice((0.0, 0.5, 1.0, 1.0)) for _ in rows]
    pairs = np.array(rows)
    games = Games(pairs[:, 0], pairs[:, 1], np.array(scores), np.arange(60), 3)
    ratings = []
    for _ in range(1000):
        order = generator.sample(range(60), 60)
        battles = [
            {"model_a": rows[i][0], "model_b": rows[i][1], "score_a": scores[i], "score_b": 0.5}
            if scores[i] != 0.5
            else {"model_a": rows[i][0], "model_b": rows[i][1], "score_a": 1, "score_b": 1}
            for i in order
        ]
        by_model = elo_by_loop(battles)
        ratings.append([by_model[model] for model in range(3)])
    low, high = elo_interval(games, seed=0)
    expected_low, expected_high = np.percentile(ratings, (2.5, 97.5), axis=0)
    assert low == pytest.approx(expected_low, abs=8) and high == pytest.approx(expected_high, abs=8)
    assert (elo_interval(games, seed=0) == [low, high]).all()
    assert not (elo_interval(games, seed=1) == [low, high]).all()


@pytest.mark.slow
def test_orders_in_small_blocks_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders that are left out, or repeated, where they do not fit memory together."""
    games = Games(np.array([0, 0]), np.array([1, 1]), np.array([1.0, 0.0]), np.arange(2), 2)
    whole = elo_interval(games, seed=0)
    monkeypatch.setattr("evaluate.tournament.elo._MAX_NUMBERS", 7)
    assert elo_interval(games, seed=0) == pytest.approx(whole)
