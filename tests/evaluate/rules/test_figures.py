"""The figures of items whose replies are known."""

from dataclasses import replace

import pytest

from evaluate.rules.ask import AskedItem, Reply
from evaluate.rules.figures import compute_figures
from evaluate.rules.generate import draw_items
from evaluate.rules.item import Form
from evaluate.rules.originals import ORIGINALS

APPLES = ORIGINALS[0]  # candidates 3 2 7 1 5; right 1, against common sense 7, common sense 3


def _asked(with_rule: str, without: str | None, against: str) -> AskedItem:
    replies: dict[Form, Reply] = {
        "with": Reply(with_rule, ""),
        "without": Reply(without, ""),
        "against": Reply(against, ""),
    }
    return AskedItem(APPLES, replies)


def test_rates_of_known_replies() -> None:
    """Guesses that are compared with the answer of the other rule, or with common sense."""
    asked = [
        _asked("1个", "1个", "7个"),
        _asked("1个", "1个", "3个"),
        _asked("3个", None, "7个"),
        _asked("1个", "7个", "5个"),
    ]
    figures = compute_figures(asked)
    rule, contrary = figures.by_rule["with"], figures.by_rule["against"]
    assert (rule.right.rate, rule.guessed.rate, rule.use.difference) == (0.75, 0.5, 0.25)
    assert (rule.common.rate, contrary.common.rate) == (0.25, 0.25)
    assert figures.common_without.rate == 0
    assert (contrary.right.rate, contrary.guessed.rate) == (0.5, 0.25)
    assert (rule.use.both, rule.use.first_only, rule.use.second_only) == (2, 1, 0)
    assert (contrary.use.first_only, contrary.use.second_only) == (2, 1)
    # The right answer is the fourth candidate, the smallest, and one of five that are as long.
    assert rule.trivial == pytest.approx(
        {"chance": 0.2, "position": 1, "answer": 1, "longest": 0.2, "rank": 1}
    )


def test_the_best_trivial_method_is_the_best_constant() -> None:
    """Trivial lines below what a constant reaches, which would make any model look good."""
    first = APPLES
    second = replace(first, candidates=("1个", "3个", "7个", "0个", "10个"))
    third = replace(first, candidates=("3个", "9个", "7个", "1个", "8个"), right="9个")
    asked = [
        AskedItem(item, _asked("1个", "1个", "1个").replies) for item in (first, second, third)
    ]
    trivial = compute_figures(asked).by_rule["with"].trivial
    assert trivial == pytest.approx(
        {"chance": 0.2, "position": 1 / 3, "answer": 2 / 3, "longest": 2 / 15, "rank": 1 / 3}
    )


def test_words_have_no_rank() -> None:
    """A rank by number of what are names."""
    asked = [
        AskedItem(item, _asked("1个", "1个", "1个").replies)
        for item in draw_items("order", 3, 1, 0, "test")
    ]
    assert "rank" not in compute_figures(asked).by_rule["with"].trivial


def test_rule_use_below_a_trivial_line_is_not_reading() -> None:
    """A model that a rule brings from one wrong habit to another, and that is said to read."""
    others = [
        replace(APPLES, right=right, candidates=APPLES.candidates) for right in ("1个", "2个")
    ]
    replies = _asked("1个", "5个", "5个").replies
    half_right = compute_figures([AskedItem(item, replies) for item in others * 100])
    rule = half_right.by_rule["with"]
    assert rule.use.interval[0] > 0.4 and rule.best_trivial[1] == 0.5
    assert not rule.shows_reading
    follows = [AskedItem(item, _asked(item.right, "5个", "5个").replies) for item in others * 100]
    assert compute_figures(follows).by_rule["with"].shows_reading
    assert half_right.answered.rate == 1.0
    assert compute_figures([_asked("1个", None, "7个")]).answered.rate == 2 / 3
