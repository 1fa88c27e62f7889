"""Generated problems: right answers, and no sum in both parts."""

import ast
import operator
import random
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import pytest

from evaluate.maths import arithmetic, word_problems
from evaluate.maths.arithmetic import draw_arithmetic
from evaluate.maths.numbers import find_numbers, last_number
from evaluate.maths.options import MathsOptions
from evaluate.maths.problems import DrawProblem, Problem, generate_problems
from evaluate.maths.word_problems import draw_word_problem

pytestmark = pytest.mark.slow
DRAWS = [draw_arithmetic, draw_word_problem]
_OPERATORS: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(expression: str) -> Fraction:
    """Return the value of an expression by Python's own grammar."""

    def value(node: ast.expr) -> Fraction:
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        assert isinstance(node, ast.Constant)
        return Fraction(node.value)

    tree = ast.parse(expression.replace("×", "*").replace("÷", "/"), mode="eval")
    return value(tree.body)


def sum_of(problem: Problem) -> tuple[str, ...]:
    """Return what is calculated, without the words and without the order of a sum or product."""
    if problem.operation in ("addition", "multiplication"):
        return (problem.operation, *sorted(map(str, find_numbers(problem.question))))
    return (problem.operation, *problem.solution.split("。")[0].split("，"))


def generate(draw: DrawProblem, **changes: object) -> list[Problem]:
    settings = {"difficulty": 5, "count": 500, "seed": 0, "part": "test", **changes}
    return generate_problems(draw, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", DRAWS)
def test_solutions_are_right_and_end_with_the_answer(draw: DrawProblem) -> None:
    """Prevents a wrong answer, and training on a solution that its own measure calls wrong."""
    for problem in generate(draw):
        assert last_number(problem.solution) == problem.answer
        for equation in problem.solution.split("。")[0].split("，"):
            assert len({calculate(side) for side in equation.split("=")}) == 1, problem
        assert "{" not in problem.question


def test_arithmetic_asks_for_what_is_answered() -> None:
    """Prevents a question in words, or with another sum, that the answer does not fit."""
    words = {"加": "+", "减": "-", "乘以": "*", "除以": "/"}
    for problem in generate(draw_arithmetic):
        question = problem.question
        for word, symbol in words.items():
            question = question.replace(word, symbol)
        (expression,) = re.findall(r"[(\d][\d+\-×÷*/()]*[\d)]|\d", question)
        assert calculate(expression) == problem.answer, problem.question


def test_word_problems_ask_with_the_numbers_of_their_solution() -> None:
    """Prevents a wording without one of the numbers, and a negative or broken number of things."""
    for problem in generate(draw_word_problem):
        asked = set(find_numbers(problem.question))
        calculated = set(find_numbers(problem.solution))
        # Results of steps are in the solution only.
        results = {
            calculate(step.split("=")[0]) for step in problem.solution.split("。")[0].split("，")
        }
        # The book and the bag that are bought beside are one each, and 第一 is none of the sum.
        assert calculated - results <= asked <= calculated | {Fraction(1), Fraction(2)}, problem
        assert all(number >= 0 and number.denominator == 1 for number in calculated)
        # Else the trivial method would answer with a word of the question.
        assert last_number(problem.question) in calculated


@pytest.mark.parametrize("draw", DRAWS)
def test_training_has_no_sum_of_the_test(draw: DrawProblem) -> None:
    """Prevents a test of memory: the same numbers in other words, at any seed."""
    test = generate(draw, count=1000)
    sums = set(map(sum_of, test))
    for seed in (0, 1):
        training = generate(draw, count=2000, seed=seed, part="training")
        assert not sums & set(map(sum_of, training))
        assert len({problem.question for problem in training}) == len(training) > 1000
    assert len(sums) > 500


@pytest.mark.parametrize("draw", DRAWS)
def test_same_seed_gives_same_problems_and_levels_are_equally_many(draw: DrawProblem) -> None:
    """Prevents figures that cannot be repeated, and levels that depend on how many there are."""
    first, again = generate(draw, count=100), generate(draw, count=100)
    assert first == again != generate(draw, count=100, seed=1)
    assert Counter(problem.difficulty for problem in first) == dict.fromkeys(range(1, 6), 20)
    lower = generate(draw, count=40, difficulty=2)
    assert lower == [problem for problem in first if problem.difficulty <= 2]
    assert len(generate(draw, count=7, difficulty=3)) == 7


def test_levels_get_harder() -> None:
    """Prevents a dial that does nothing."""
    rng = random.Random(0)
    for draw in DRAWS:
        # The steps of the longest solution, and the largest number.
        levels = []
        for level in range(1, 6):
            solutions = [draw(rng, level).solution for _ in range(200)]
            num_steps = max(solution.count("=") for solution in solutions)
            levels.append((num_steps, max(map(max, map(find_numbers, solutions)))))
        assert levels == sorted(levels) and levels[0][1] < 100 < levels[-1][1]


def test_problems_that_run_out_are_fewer() -> None:
    """Prevents an endless search for another sum of small numbers."""
    problems = generate(draw_arithmetic, difficulty=1, count=100_000)
    assert 50 < len(problems) < 5000


def test_difficulty_is_that_of_the_generators() -> None:
    """Prevents a level that the command line offers and no generator has."""
    (limit,) = (
        each.le for each in MathsOptions.model_fields["difficulty"].metadata if hasattr(each, "le")
    )
    assert limit == arithmetic.MAX_DIFFICULTY == word_problems.MAX_DIFFICULTY
