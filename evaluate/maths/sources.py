"""The problems that the options of `python -m evaluate.maths` name."""

import random

from evaluate.maths.arithmetic import draw_arithmetic
from evaluate.maths.files import read_problems
from evaluate.maths.options import GENERATED, MathsOptions
from evaluate.maths.problems import DrawProblem, Part, Problem, generate_problems
from evaluate.maths.word_problems import draw_word_problem

_DRAW: dict[str, DrawProblem] = {
    "arithmetic": draw_arithmetic,
    "word-problems": draw_word_problem,
}


def load_problems(options: MathsOptions) -> list[Problem]:
    """Return the problems to measure with: generated ones of the test part, or those of files."""
    if options.source in GENERATED:
        return draw_problems(options, "test")
    return read_problems(options.source, options.input, options.limit)


def draw_problems(options: MathsOptions, part: Part) -> list[Problem]:
    """Return generated problems of a part in random order; print if there are too few.

    The order is random so that a file to train on has all levels everywhere.
    """
    problems = generate_problems(
        _DRAW[options.source],
        difficulty=options.difficulty,
        count=options.count,
        seed=options.seed,
        part=part,
    )
    if len(problems) < options.count:
        print(
            f"only {len(problems):,} of {options.count:,} problems: the {part} part has no more "
            "different ones of the lower levels"
        )
    random.Random(options.seed).shuffle(problems)
    return problems
