"""What is reached on multiple choice without reading the question."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluate.choice.questions import LETTERS, ChoiceQuestion


def trivial_scores(questions: Sequence[ChoiceQuestion]) -> dict[str, float]:
    """Return the number of right answers of each trivial method, by its name.

    If a method cannot tell several options apart, it draws among them: each counts its share.
    """
    scores = {
        "chance": sum(1 / len(question.options) for question in questions),
        **_best_letter(questions),
        "longest option": _score(questions, lambda question, option: len(option)),
        "shortest option": _score(questions, lambda question, option: -len(option)),
    }
    if any(question.passage for question in questions):
        scores["most in common with the passage"] = _score(questions, _shared_bigrams)
    return scores


def _best_letter(questions: Sequence[ChoiceQuestion]) -> dict[str, float]:
    counts = np.bincount([question.answer for question in questions])
    best = int(counts.argmax())
    return {f"always {LETTERS[best]}": float(counts[best])}


def _score(
    questions: Sequence[ChoiceQuestion], rate: Callable[[ChoiceQuestion, str], float]
) -> float:
    """Return the number of right answers of the option with the highest rate."""
    total = 0.0
    for question in questions:
        rates = [rate(question, option) for option in question.options]
        best = [index for index, value in enumerate(rates) if value == max(rates)]
        total += (question.answer in best) / len(best)
    return total


def _shared_bigrams(question: ChoiceQuestion, option: str) -> float:
    """Return the fraction of the pairs of characters of the option that the passage has."""
    pairs = [option[start : start + 2] for start in range(len(option) - 1)]
    return sum(pair in question.passage for pair in pairs) / max(len(pairs), 1)
