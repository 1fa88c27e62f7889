"""A decline is one beyond chance, between steps of which the later has a lower loss."""

import math

import numpy as np
import pytest

from evaluate.watch.declines import MIN_QUESTIONS, find_decline


def right_answers(*counts: int, questions: int = 32) -> np.ndarray:
    """Return scores of 1 for the first `counts` questions of each step, float64[S, questions]."""
    return np.array([[float(index < count) for index in range(questions)] for count in counts])


def test_decline_has_its_steps_and_interval() -> None:
    """Prevents other steps in the sentence, and an interval of unpaired answers."""
    decline = find_decline(right_answers(8, 28, 6), [3.0, 2.5, 2.0], num_measures=1)
    assert decline is not None
    assert (decline.earlier, decline.later, decline.num_comparisons) == (1, 2, 3)
    assert decline.change == pytest.approx(-22 / 32)
    # Agresti & Min (2005) from the four counts: half an answer is added to each. 22 answers were
    # right at the earlier step alone, none at the later step alone. 2.393980 is the quantile of
    # 1 - 0.05 / 2 / 3.
    total, lost, won = 34, 22.5, 0.5
    center = (won - lost) / total
    half_width = 2.393980 * math.sqrt(lost + won - (won - lost) ** 2 / total) / total
    assert (decline.low, decline.high) == pytest.approx(
        (center - half_width, center + half_width), abs=1e-6
    )


def test_a_decline_needs_a_loss_that_falls() -> None:
    """Prevents a warning where the loss rises too, or where it is unknown."""
    scores = right_answers(28, 6)
    assert find_decline(scores, [2.0, 1.5], 1) is not None
    for losses in ([2.0, 2.5], [2.0, 2.0], [None, 2.0], [2.0, None]):
        assert find_decline(scores, losses, 1) is None
    assert find_decline(right_answers(6, 28), [2.0, 1.5], 1) is None


def test_answers_that_all_change_alike_have_an_interval() -> None:
    """Prevents an interval of width 0, and a decline that so few questions cannot show."""
    scores = right_answers(MIN_QUESTIONS, 0, questions=MIN_QUESTIONS)
    decline = find_decline(scores, [2.0, 1.5], 1)
    assert decline is not None and decline.low < decline.high < 0
    assert find_decline(scores[:, 1:], [2.0, 1.5], 1) is None
    # One of many questions.
    assert find_decline(right_answers(32, 31), [2.0, 1.5], 1) is None


def test_noise_is_rarely_a_decline() -> None:
    """Prevents a warning for the luckiest of many steps."""
    generator = np.random.default_rng(0)
    num_runs, num_steps = 300, 8
    losses = [4 - 0.1 * step for step in range(num_steps)]
    for num_questions in (MIN_QUESTIONS, 32):
        reported = 0
        for _ in range(num_runs):
            # Each question has a probability of its own of a right answer, the same at each step.
            difficulty = generator.random(num_questions)
            scores = (generator.random((num_steps, num_questions)) < difficulty).astype(float)
            reported += find_decline(scores, losses, 1) is not None
        assert reported / num_runs < 0.05


def test_more_comparisons_need_a_larger_decline() -> None:
    """Prevents an interval that is not corrected for the number of steps and measures."""
    scores = right_answers(20, 13)
    assert find_decline(scores, [2.0, 1.5], 1) is not None
    assert find_decline(scores, [2.0, 1.5], 20) is None
    many = right_answers(*[20] * 10, 13)
    assert find_decline(many, [3 - 0.1 * step for step in range(11)], 1) is None


def test_scores_between_right_and_wrong_are_compared() -> None:
    """Prevents scores such as ROUGE that are rounded to right or wrong."""
    generator = np.random.default_rng(1)
    before = 0.4 + 0.2 * generator.random(32)
    decline = find_decline(np.stack([before, before - 0.2]), [2.0, 1.5], 1)
    assert decline is not None and decline.change == pytest.approx(-0.2)
    assert find_decline(np.stack([before, before - 0.01]), [2.0, 1.5], 1) is None


def test_the_last_good_step_is_named() -> None:
    """Prevents a decline that seems to begin long before it does."""
    losses = [3 - 0.1 * step for step in range(5)]
    decline = find_decline(right_answers(30, 30, 30, 5, 5), losses, 1)
    assert decline is not None and (decline.earlier, decline.later) == (2, 3)
