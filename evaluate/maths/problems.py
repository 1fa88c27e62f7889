"""Maths problems with the number that answers each, and the generated ones in two parts.

The generated problems of a source are divided by a hash of their numbers and operations: a fifth
belongs to the test part, the rest to the training part. So no sum of the test is in any training
file, in whatever words and whatever the seeds are.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Part = Literal["test", "training"]
# A fifth of the sums: the first byte of the hash is below this.
_TEST_BYTES = 51
# Draws without a new problem, after which there are taken to be no more.
_MAX_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem and its answer.

    Generated ones have an operation, a difficulty from 1 on, a worked solution that ends with the
    answer, and the sum that they ask for, which is the same for all wordings.
    """

    question: str
    answer: Fraction
    operation: str = ""
    difficulty: int = 0
    solution: str = ""
    sum_text: str = ""


DrawProblem = Callable[[random.Random, int], Problem]


def generate_problems(
    draw: DrawProblem, *, difficulty: int, count: int, seed: int, part: Part
) -> list[Problem]:
    """Return about `count` different problems of a part, equally many of each difficulty.

    Args:
        draw: returns a random problem of a difficulty.
        difficulty: the highest difficulty; the lowest is 1.
        count: number of problems; there are fewer if a difficulty has no more.
        seed: seed of the random numbers.
        part: the part that the problems belong to.
    """
    problems: list[Problem] = []
    questions: set[str] = set()
    for level in range(1, difficulty + 1):
        # Levels have their own seeds, so that a higher `difficulty` leaves the others as they are.
        rng = random.Random(f"{seed} {part} {level}")
        wanted = count * level // difficulty - count * (level - 1) // difficulty
        num_drawn = num_futile = 0
        while num_drawn < wanted and num_futile < _MAX_DRAWS:
            problem = draw(rng, level)
            if problem.question in questions or find_part(problem) != part:
                num_futile += 1
                continue
            questions.add(problem.question)
            problems.append(problem)
            num_drawn += 1
            num_futile = 0
    return problems


def find_part(problem: Problem) -> Part:
    """Return the part that a generated problem belongs to, by a hash of its sum."""
    first_byte = hashlib.sha256(problem.sum_text.encode()).digest()[0]
    return "test" if first_byte < _TEST_BYTES else "training"
