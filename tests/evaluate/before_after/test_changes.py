"""What is called a change, and in which words."""

from typing import Any

import numpy as np
import pytest

from evaluate.before_after.changes import (
    NEW_TASK_LOSS,
    OLD_TASK_LOSS,
    TaskComparison,
    compare_losses,
    compare_scores,
)
from evaluate.before_after.tasks import Task
from evaluate.kinds.conversations import EVALUATION, EXACT, ChatQuestions, Question
from evaluate.kinds.question_sets import CHARACTERS, LOOPS, STOPPED, keep_answered
from evaluate.kinds.summaries import ROUGE
from evaluate.metrics.language_model import LMScore
from evaluate.metrics.paired_difference import PairedDifference
from evaluate.model_answer import ModelAnswer

NUM_QUESTIONS = 40


def scores(mean: float, seed: int, *, is_rate: bool = False) -> np.ndarray:
    """Return scores of the questions around a mean, float64[n]."""
    generator = np.random.default_rng(seed)
    if is_rate:
        return (generator.random(NUM_QUESTIONS) < mean).astype(np.float64)
    return mean + generator.normal(size=NUM_QUESTIONS)


@pytest.mark.parametrize(
    ("measure", "before", "after", "words"),
    [
        (LOOPS, 0.05, 0.6, ("loopier", "less loopy")),
        (STOPPED, 0.3, 0.95, ("stops more often", "stops less often")),
        (CHARACTERS, 31.0, 55.0, ("longer", "shorter")),
        (EXACT, 0.2, 0.9, ("reads better", "reads worse")),
        (ROUGE[0], 0.0, 2.0, ("summarizes better", "summarizes worse")),
    ],
    ids=lambda value: getattr(value, "key", None),
)
def test_a_change_is_called_by_its_direction(
    measure: Any, before: float, after: float, words: tuple[str, str]
) -> None:
    """Prevents the difference in the wrong direction, which calls a loopier model less loopy."""
    low = scores(before, 1, is_rate=measure.is_rate)
    high = scores(after, 2, is_rate=measure.is_rate)
    rise, fall = compare_scores(measure, low, high), compare_scores(measure, high, low)
    assert (rise.word, fall.word) == words
    assert rise.change["mean"] == pytest.approx(high.mean() - low.mean())
    assert rise.change["low"] > 0 > fall.change["high"]
    assert rise.before == fall.after and rise.after == fall.before
    assert compare_scores(measure, low, low).word is None


def test_differences_are_paired() -> None:
    """Prevents intervals of independent samples, in which a small change of all answers drowns."""
    lengths = scores(100.0, 3) * 10
    change = compare_scores(CHARACTERS, lengths, lengths + 5 + scores(0.0, 4))
    # The interval of Student's t over the differences.
    differences = 5 + scores(0.0, 4)
    half = 2.02 * differences.std(ddof=1) / NUM_QUESTIONS**0.5
    assert change.change["low"] == pytest.approx(differences.mean() - half, abs=0.1)
    assert change.change["high"] == pytest.approx(differences.mean() + half, abs=0.1)
    before, after = np.array([1.0] * 30 + [0.0] * 10), np.array([1.0] * 25 + [0.0] * 15)
    assert compare_scores(LOOPS, before, after).change == PairedDifference(25, 0, 5, 10).to_json()


def test_the_loss_is_that_of_all_tokens() -> None:
    """Prevents a mean over records, in which short answers weigh more, and perplexities of it."""
    generator = np.random.default_rng(5)
    counts = generator.integers(1, 50, NUM_QUESTIONS)
    before = [LMScore(float(count), int(count)) for count in counts]
    after = [LMScore(1.5 * count + 0.1 * generator.random(), int(count)) for count in counts]
    change = compare_losses(OLD_TASK_LOSS, before, after)
    assert change is not None and change.word == "forgot" and change.count == NUM_QUESTIONS
    assert change.before == pytest.approx({"mean": 1.0, "low": 1.0, "high": 1.0})
    expected = sum(score.total_nats for score in after) / sum(counts)
    assert change.after["mean"] == pytest.approx(expected)
    assert change.change["mean"] == pytest.approx(expected - 1)
    assert change.change["low"] < change.change["mean"] < change.change["high"]
    assert change.describe().endswith(f"perplexity 2.72 → {np.exp(expected):.2f}")
    learned = compare_losses(NEW_TASK_LOSS, after, before)
    assert learned is not None and learned.word == "learned"


def test_records_without_room_are_left_out_of_both_losses() -> None:
    """Prevents the loss of more records before than after, and a division by no tokens."""
    before = [LMScore(1.0, 1)] * 12 + [LMScore(1000.0, 1), LMScore()]
    after = [LMScore(2.0, 1)] * 12 + [LMScore(), LMScore(1000.0, 1)]
    change = compare_losses(NEW_TASK_LOSS, before, after)
    assert change is not None and change.count == 12
    assert (change.before["mean"], change.after["mean"]) == (1.0, 2.0)
    assert compare_losses(NEW_TASK_LOSS, [LMScore()], [LMScore(1.0, 1)]) is None


def compare(before: list[str], after: list[str]) -> TaskComparison:
    """Return the comparison of answers to questions about passages, without a loss."""
    questions = tuple(Question((), f"第{n}个？", "山", "山。") for n in range(len(before)))
    answers = [[ModelAnswer(text, 1, has_eos=True) for text in texts] for texts in (before, after)]
    question_set, kept = keep_answered(ChatQuestions("x", questions), answers)
    scored = [question_set.score(each) for each in kept]
    changes = [
        compare_scores(measure, scored[0][measure.key], scored[1][measure.key])
        for measure in question_set.measures
    ]
    task = Task("old task", "x", EVALUATION, [], question_set, is_old=True)
    return TaskComparison(task, changes, question_set, kept)


def test_what_is_not_found_is_said_with_its_size() -> None:
    """Prevents silence about measures without a change, and verdicts on too few questions."""
    comparison = compare(["山"] * 20, ["山"] * 19 + ["河水"])
    labels = "exact answers, looping answers, answers ended by <eos>, characters per answer"
    assert comparison.conclusions == [f"old task: no difference found (n = 20): {labels}"]
    few = compare(["山"] * 9, ["山" * 20] * 9)
    assert few.conclusions == [f"old task: too few to tell (n = 9, at least 10): {labels}"]
    enough = compare(["山"] * 10, ["山" * 20] * 10).conclusions
    assert [line.split(": ")[1] for line in enough] == [
        "reads worse",
        "loopier",
        "longer",
        "no difference found (n = 10)",
    ]
    assert enough[1].startswith("old task: loopier: looping answers 0.0 % → 100.0 %, +100.0 points")
    assert "characters per answer 1.0 → 20.0, +19.0 (+19.0 – +19.0) (n = 10)" in enough[2]
