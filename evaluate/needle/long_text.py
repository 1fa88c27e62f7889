"""A long text with things to look up in it, and the questions for them."""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from common.errors import UserError

Part = Literal["test", "training"]
# A fifth of the facts: the first byte of the hash is below this.
_TEST_BYTES = 51
# Draws without a new fact, after which there are taken to be no more.
_MAX_DRAWS = 5000


@dataclass(frozen=True, slots=True)
class Question:
    """A question that a text answers."""

    place: int
    """The number of the value among those of the text, from 0."""
    text: str
    answer_start: str
    """The answer without its value, which comes last."""
    value: str


@dataclass(frozen=True, slots=True)
class LongText:
    """A passage, or a conversation, with a question for each of its values."""

    passage: str
    """Empty for a conversation."""
    turns: tuple[tuple[str, str], ...]
    """Those of a conversation: what the one who asks says, and the replies."""
    plain: str
    """The passage, or the conversation as plain text."""
    questions: tuple[Question, ...]
    """In the order of the values in the text."""
    depths: tuple[float, ...]
    """The share of the text before each value, at least 0 and below 1."""

    @property
    def values(self) -> tuple[str, ...]:
        """Return what can be the answer: all values of the text, in their order."""
        return tuple(question.value for question in self.questions)


# Draws a text of at most so many tokens.
DrawText = Callable[[random.Random, int], LongText]
CountTokens = Callable[[str], int]


def find_part(fact: str) -> Part:
    """Return the part that a fact belongs to, by a hash of it.

    Texts of the test have facts of the test part alone, and texts to train on have none of them.
    """
    return "test" if hashlib.sha256(fact.encode()).digest()[0] < _TEST_BYTES else "training"


def draw_new(draw: Callable[[], str | None], message: str) -> str:
    """Return the first result of `draw` that is not None.

    Raises UserError, with `message`, after too many draws without one.
    """
    for _ in range(_MAX_DRAWS):
        drawn = draw()
        if drawn is not None:
            return drawn
    raise UserError(message)
