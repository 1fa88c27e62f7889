"""Texts of a length in tokens, each with a question for every part of it."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import UserError
from evaluate.needle.frames import Frame
from evaluate.needle.long_text import DrawText, LongText, Question

# Draws of a text before a length is taken to have too little room.
_MAX_ATTEMPTS = 20
# Tokens that a text is shortened by at least, so that it soon loses a line.
_MIN_STEP = 8


@dataclass(frozen=True)
class Case:
    """A text, a question for each depth, and the prompts of these."""

    text: LongText
    questions: list[Question]
    prompts: list[list[int]]


def build_case(draw: DrawText, frame: Frame, *, length: int, num_depths: int, seed: str) -> Case:
    """Return a text with `num_depths` questions, at most `length` tokens with the longest of them.

    The text is divided into `num_depths` equal parts; a random value of each is asked for. The
    answer and everything around text and question count as tokens. Equal arguments give equal
    cases. Raises UserError if `length` has too little room.
    """
    for attempt in range(_MAX_ATTEMPTS):
        case = _try_to_build(draw, frame, length, num_depths, f"{seed} {attempt}")
        if case is not None:
            return case
    raise UserError(
        f"--lengths {length}: has no room for something to ask about in each of {num_depths} "
        "parts of the text: give longer --lengths, or fewer --depths"
    )


def _try_to_build(
    draw: DrawText, frame: Frame, length: int, num_depths: int, seed: str
) -> Case | None:
    """Return the case of a seed; None if one of its parts has no value."""
    budget = length
    while budget > 0:
        # The same draws each time, until less text fits.
        rng = random.Random(seed)
        text = draw(rng, budget)
        questions = choose_questions(text, num_depths, rng)
        if questions is None:
            return None
        prompts = frame.encode_prompts(text, questions)
        excess = -length + max(
            len(prompt) + frame.count_answer_tokens(question)
            for prompt, question in zip(prompts, questions, strict=True)
        )
        if excess <= 0:
            return Case(text, questions, prompts)
        budget -= max(excess, _MIN_STEP)
    return None


def choose_questions(text: LongText, num_depths: int, rng: random.Random) -> list[Question] | None:
    """Return a random question about each of `num_depths` equal parts; None if one has no value."""
    questions = []
    for part in range(num_depths):
        inside = [
            question
            for question, depth in zip(text.questions, text.depths, strict=True)
            if int(depth * num_depths) == part
        ]
        if not inside:
            return None
        questions.append(rng.choice(inside))
    return questions


def trivial_places(text: LongText, question: Question) -> dict[str, float]:
    """Return the probability that a trivial method is right: by chance, the first or last value."""
    last = len(text.questions) - 1
    return {
        "chance": 1 / len(text.questions),
        "first": float(question.place == 0),
        "last": float(question.place == last),
    }


def part_labels(num_depths: int) -> Sequence[str]:
    """Return the names of the parts of a text, such as `0–20 %`."""
    edges = [round(100 * part / num_depths) for part in range(num_depths + 1)]
    return [f"{low}–{high} %" for low, high in zip(edges, edges[1:], strict=False)]
