"""Rates by length and depth, with intervals over texts."""

import pytest

from evaluate.metrics.proportion import Proportion
from evaluate.needle.ask import Reply
from evaluate.needle.figures import compute_figures


def _reply(right: bool, *, first: bool = False, **fields: float) -> Reply:
    return {
        "right": right,
        "choice": "1" if right else None,
        "values": 4,
        "tokens": 100,
        "trivial": {"chance": 0.25, "first": float(first), "last": 0.0},
        **fields,
    }


def test_questions_about_a_text_count_as_one() -> None:
    """Prevents intervals that take five questions about one text for five independent ones."""
    texts = [
        [_reply(True, first=True, less_likely=1.0), _reply(True, less_likely=0.5)],
        [_reply(True, less_likely=1.0), _reply(False, less_likely=0.0)],
    ]
    figures = compute_figures(texts)
    assert figures.right == Proportion(1.5, 2)
    assert figures.cells == (Proportion(2, 2), Proportion(1, 2))
    assert figures.less_likely == Proportion(0.75 + 0.5, 2)
    assert figures.trivial == {"chance": 0.25, "first": 0.25, "last": 0.0}
    assert figures.best_trivial == 0.25
    assert figures.answered == Proportion(3, 4)
    assert figures.to_json()["cells"][1]["rate"] == 0.5


def test_generated_answers_have_no_likelihoods() -> None:
    """Prevents a share of less likely values of answers that have none."""
    figures = compute_figures([[_reply(True)]])
    assert figures.less_likely is None
    assert "less_likely" not in figures.to_json()
    assert figures.mean_values == pytest.approx(4.0)
