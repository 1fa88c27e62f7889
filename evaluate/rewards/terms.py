"""The rewards of answers: each term by name, and their weighted sum."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from common.files import sha256_file
from evaluate.maths.numbers import last_number
from evaluate.metrics.answer_measures import (
    AnswerMeasure,
    exact,
    few_repetitions,
    length_ratio,
    rouge_1,
    rouge_l,
)
from evaluate.metrics.repetition import is_looping
from evaluate.model_answer import ModelAnswer
from evaluate.rewards.options import parse_rewards
from evaluate.rewards.user_function import load_user_reward, split_user_reward


def _number(answer: ModelAnswer, reference: str) -> float:
    number = last_number(answer.text)
    return float(number is not None and number == last_number(reference))


def _loops(answer: ModelAnswer, _reference: str) -> float:
    return -float(is_looping(answer.text))


def _truncated(answer: ModelAnswer, _reference: str) -> float:
    return -float(not answer.has_eos)


# By the names of `REWARD_DESCRIPTIONS`.
MEASURES: dict[str, AnswerMeasure] = {
    "rouge": rouge_l,
    "rouge-1": rouge_1,
    "exact": exact,
    "number": _number,
    "length": length_ratio,
    "repetition": few_repetitions,
    "loops": _loops,
    "truncated": _truncated,
}

# The logs have figures of the whole reward with these names: reward_std, reward_low, reward_high.
_RESERVED_LABELS = ("std", "low", "high")


@dataclass(frozen=True)
class RewardTerm:
    """One of the rewards that are summed."""

    name: str  # as in the options
    weight: float
    score: Callable[[str, ModelAnswer, str], float]  # of prompt, answer and true answer
    fingerprint: str  # identifies the function

    @property
    def label(self) -> str:
        """Return the name in logs: that of the function, if the user wrote it."""
        return split_user_reward(self.name)[1] if ".py:" in self.name else self.name


def build_rewards(rewards: str) -> tuple[RewardTerm, ...]:
    """Return the terms of rewards such as `rouge:1,mine.py:score`.

    Raises UserError if a function of the user cannot be loaded, or has a name that is taken.
    """
    terms: list[RewardTerm] = []
    for name, weight in parse_rewards(rewards).items():
        if name in MEASURES:
            terms.append(RewardTerm(name, weight, _without_prompt(MEASURES[name]), name))
        else:
            path, _ = split_user_reward(name)
            terms.append(RewardTerm(name, weight, load_user_reward(name), sha256_file(path)))
    labels = [term.label for term in terms]
    for label in labels:
        if labels.count(label) > 1 or label in _RESERVED_LABELS:
            raise UserError(
                f"--grpo.rewards {rewards}: logs have another reward_{label}: rename the function "
                f"{label}"
            )
    return tuple(terms)


def _without_prompt(measure: AnswerMeasure) -> Callable[[str, ModelAnswer, str], float]:
    return lambda _prompt, answer, reference: measure(answer, reference)


def score_answers(
    terms: Sequence[RewardTerm], prompt: str, answers: Sequence[ModelAnswer], reference: str
) -> np.ndarray:
    """Return the terms of each answer to one prompt, without their weights, fp64[answers, terms].

    Raises UserError if a function of the user fails.
    """
    rows = [[term.score(prompt, answer, reference) for term in terms] for answer in answers]
    return np.array(rows, np.float64).reshape(len(answers), len(terms))


def sum_terms(terms: Sequence[RewardTerm], scores: np.ndarray) -> np.ndarray:
    """Return the reward of each answer, fp64[n], from scores[n, terms]."""
    return scores @ np.array([term.weight for term in terms])
