"""What a judge gets: every pair of models on every question, in both orders."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from evaluate.tournament.questions import ModelAnswers, TournamentQuestion


@dataclass(frozen=True, slots=True)
class Showing:
    """Two answers to a question, in the order in which a judge gets them."""

    question: TournamentQuestion
    model_a: str
    model_b: str
    answer_a: str
    answer_b: str

    @property
    def reversed(self) -> "Showing":
        """Return the same answers in the other order."""
        return Showing(self.question, self.model_b, self.model_a, self.answer_b, self.answer_a)


def build_showings(
    questions: Sequence[TournamentQuestion], models: Sequence[ModelAnswers]
) -> list[Showing]:
    """Return every pair of models on every question that both answered, in both orders.

    The two orders of a pair are next to each other.
    """
    showings = []
    for question in questions:
        answering = [model for model in models if question.key in model.texts]
        for first, second in combinations(answering, 2):
            showing = Showing(
                question,
                first.name,
                second.name,
                first.texts[question.key],
                second.texts[question.key],
            )
            showings += [showing, showing.reversed]
    return showings


def draw_sequence(showings: Sequence[Showing], seed: int) -> list[Showing]:
    """Return the showings of `build_showings` in the sequence for a person, drawn by the seed.

    First comes one order of every pair and question, which order is drawn too, and then the other
    orders in another sequence: nobody remembers what came first, and somebody who stops after the
    first half has compared everything once.
    """
    generator = random.Random(seed)
    first_half = [
        pair[generator.randrange(2)] for pair in zip(showings[::2], showings[1::2], strict=True)
    ]
    second_half = [showing.reversed for showing in first_half]
    generator.shuffle(first_half)
    generator.shuffle(second_half)
    return first_half + second_half
