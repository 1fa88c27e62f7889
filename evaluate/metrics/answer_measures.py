"""Measures of one answer beside the true one, from 0 to 1, higher is better.

Preference pairs are chosen by them, and they are rewards.
"""

from collections.abc import Callable

from evaluate.metrics.repetition import is_looping, measure_repetition
from evaluate.metrics.rouge import compute_rouge
from evaluate.model_answer import ModelAnswer


def rouge_1(answer: ModelAnswer, reference: str) -> float:
    """Return ROUGE-1 F of characters, lower-cased."""
    return float(compute_rouge(answer.text, reference, case="lower")["1"].f)


def rouge_l(answer: ModelAnswer, reference: str) -> float:
    """Return ROUGE-L F of characters, lower-cased."""
    return float(compute_rouge(answer.text, reference, case="lower")["l"].f)


def exact(answer: ModelAnswer, reference: str) -> float:
    """Return 1 for the true answer, except for white space around it."""
    return float(answer.text.strip() == reference.strip())


def length_ratio(answer: ModelAnswer, reference: str) -> float:
    """Return the shorter length over the longer one, in characters."""
    shorter, longer = sorted([len(answer.text.strip()), len(reference.strip())])
    return shorter / longer if longer else 1.0


def few_repetitions(answer: ModelAnswer, _reference: str) -> float:
    """Return the share of 4-grams of characters that did not occur before in the answer."""
    return 1 - measure_repetition([answer.text]).repeated_4grams


def has_good_end(answer: ModelAnswer) -> bool:
    """Return whether an answer ended by itself and has no loop."""
    return answer.has_eos and not is_looping(answer.text)


def ending(answer: ModelAnswer, _reference: str) -> float:
    """Return 1 for an answer that ended by itself and has no loop."""
    return float(has_good_end(answer))


AnswerMeasure = Callable[[ModelAnswer, str], float]
