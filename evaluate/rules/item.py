"""An item: a question with an invented rule, without it, and with a rule against common sense."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

# The forms in which an item is asked. They differ in the rule alone: an invented rule, none, or one
# against common sense.
Form = Literal["with", "without", "against"]
FORMS: tuple[Form, ...] = get_args(Form)
RULE_FORMS: tuple[Form, ...] = ("with", "against")
# Largest distance of a wrong number from the smallest or the largest of the answers.
_MAX_DISTANCE = 4
_NUM_WRONG = 2


@dataclass(frozen=True, slots=True)
class Item:
    """A question, the two rules that it is asked with, and the candidate answers.

    The three answers differ, and each is once among the candidates. The order of the candidates is
    drawn.
    """

    family: str
    values: tuple[object, ...]
    """What was drawn and the answers follow from: numbers and words, but no names of people."""
    question: str
    rule: str
    contrary_rule: str
    """The rule against common sense."""
    right: str
    """The answer under `rule`."""
    contrary: str
    """The answer under `contrary_rule`."""
    common: str
    """The answer of common sense, which is that of the question without a rule."""
    candidates: tuple[str, ...]
    is_number: bool
    """Whether the candidates are numbers, with a unit or without."""

    def passage(self, form: Form) -> str:
        """Return the rule of a form; empty without one."""
        return {"with": self.rule, "without": "", "against": self.contrary_rule}[form]

    def answer(self, form: Form) -> str:
        """Return the right answer in a form; without a rule, that of common sense."""
        return {"with": self.right, "without": self.common, "against": self.contrary}[form]


def number_candidates(rng: random.Random, answers: Collection[int], unit: str) -> tuple[str, ...]:
    """Return the answers, at least 0 each, and two other numbers, in a drawn order, with `unit`.

    The other numbers are below all answers, above them, or one on each side, equally often: if an
    answer is the smallest of three, it is the smallest candidate one time in three only. Below 0 is
    no room: then more of them are above.
    """
    lowest, highest = min(answers), max(answers)
    num_below = min(rng.randrange(_NUM_WRONG + 1), lowest)
    below = rng.sample(range(max(0, lowest - _MAX_DISTANCE), lowest), num_below)
    above = rng.sample(range(highest + 1, highest + 1 + _MAX_DISTANCE), _NUM_WRONG - num_below)
    return shuffled(rng, [f"{number}{unit}" for number in (*answers, *below, *above)])


def shuffled(rng: random.Random, candidates: Collection[str]) -> tuple[str, ...]:
    """Return candidates in a drawn order."""
    return tuple(rng.sample(list(candidates), len(candidates)))
