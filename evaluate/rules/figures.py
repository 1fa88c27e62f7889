"""The figures of a family: rule use, guessing, common sense, and what trivial methods reach."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluate.metrics.paired_difference import PairedDifference
from evaluate.metrics.proportion import Proportion
from evaluate.rules.ask import AskedItem
from evaluate.rules.item import RULE_FORMS, Form, Item


@dataclass(frozen=True, slots=True)
class RuleFigures:
    """The figures of one of the two rules."""

    right: Proportion
    """Right answers with the rule."""
    guessed: Proportion
    """The same answers without a rule."""
    use: PairedDifference
    """Rule use: `right` minus `guessed`."""
    common: Proportion
    """Answers of common sense with the rule."""
    trivial: dict[str, float]
    """The rates of right answers of trivial methods, see `_trivial_rates`."""

    @property
    def best_trivial(self) -> tuple[str, float]:
        """Return the trivial method with the highest rate, and this rate."""
        return max(self.trivial.items(), key=lambda entry: entry[1])

    @property
    def shows_reading(self) -> bool:
        """Whether rule use is above 0, and right answers above trivial methods, beyond intervals.

        Rule use alone is not enough: the words of a rule change the answers of a model that does
        not understand it, too.
        """
        return self.use.interval[0] > 0 and self.right.interval[0] > self.best_trivial[1]

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a results file."""
        return {
            "right": self.right.to_json(),
            "without_rule": self.guessed.to_json(),
            "rule_use": self.use.to_json(),
            "common_sense": self.common.to_json(),
            "trivial": self.trivial,
            "shows_reading": self.shows_reading,
        }


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a family, or of several together."""

    by_rule: dict[Form, RuleFigures]
    """Of each of the `RULE_FORMS`."""
    common_without: Proportion
    """Answers of common sense without a rule."""
    answered: Proportion
    """Replies in all forms that have a candidate, which a generated answer may not have."""

    def to_json(self) -> dict[str, Any]:
        """Return the figures of a results file."""
        figures: dict[str, Any] = {form: rule.to_json() for form, rule in self.by_rule.items()}
        return {
            **figures,
            "without": {"common_sense": self.common_without.to_json()},
            "answered": self.answered.to_json(),
        }


def compute_figures(asked: Sequence[AskedItem]) -> Figures:
    """Return the figures of at least one item."""
    return Figures(
        by_rule={form: _rule_figures(asked, form) for form in RULE_FORMS},
        common_without=_count(
            [entry.replies["without"].choice == entry.item.common for entry in asked]
        ),
        answered=_count(
            [reply.choice is not None for entry in asked for reply in entry.replies.values()]
        ),
    )


def _rule_figures(asked: Sequence[AskedItem], form: Form) -> RuleFigures:
    """Return the figures of the rule of a form."""
    right = [entry.replies[form].choice == entry.item.answer(form) for entry in asked]
    guessed = [entry.replies["without"].choice == entry.item.answer(form) for entry in asked]
    common = [entry.replies[form].choice == entry.item.common for entry in asked]
    return RuleFigures(
        right=_count(right),
        guessed=_count(guessed),
        use=PairedDifference.of(right, guessed),
        common=_count(common),
        trivial=_trivial_rates([entry.item for entry in asked], form),
    )


def _count(outcomes: Sequence[bool]) -> Proportion:
    return Proportion(sum(outcomes), len(outcomes))


def _trivial_rates(items: Sequence[Item], form: Form) -> dict[str, float]:
    """Return the rates of right answers of methods that do not read the question.

    chance: a drawn candidate. position, answer: always the candidate at the same place, or with the
    same text, the best of these. longest: the candidate with the most characters, a drawn one of
    several. rank, if all candidates are numbers: always the smallest, second smallest …, the best
    of these.
    """
    answers = [item.answer(form) for item in items]
    pairs = list(zip(items, answers, strict=True))
    longest_rates = []
    for item, answer in pairs:
        length = max(map(len, item.candidates))
        longest = [candidate for candidate in item.candidates if len(candidate) == length]
        longest_rates.append(longest.count(answer) / len(longest))
    rates = {
        "chance": float(np.mean([1 / len(item.candidates) for item in items])),
        "position": _most_frequent([item.candidates.index(answer) for item, answer in pairs]),
        "answer": _most_frequent(answers),
        "longest": float(np.mean(longest_rates)),
    }
    if all(item.is_number for item in items):
        rates["rank"] = _most_frequent(
            [sorted(item.candidates, key=_number).index(answer) for item, answer in pairs]
        )
    return rates


def _most_frequent(values: Sequence[object]) -> float:
    """Return the fraction of the values that the most frequent one has."""
    return Counter(values).most_common(1)[0][1] / len(values)


def _number(candidate: str) -> int:
    """Return the number that a candidate begins with."""
    match = re.match(r"\d+", candidate)
    if match is None:
        raise ValueError(f"{candidate} does not begin with a number")
    return int(match[0])
