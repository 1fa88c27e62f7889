"""Plain arithmetic of whole numbers, such as 12×7 or (3+5)×4, in five levels of difficulty.

| level | sums and differences of numbers to | products of numbers to | besides |
|---|---|---|---|
| 1 | 9 | 9 × 9 | |
| 2 | 99 | 99 × 9 | |
| 3 | 999 | 99 × 99 | two operations; differences may be negative |
| 4 | 9,999 | 999 × 99 | the same |
| 5 | 99,999 | 999 × 999 | the same |

A quotient is a whole number: division is the inverse of a product of the same level.
"""

import random
from fractions import Fraction

from evaluate.maths.problems import Problem

MAX_DIFFICULTY = 5
# The largest factors of each level.
_FACTORS = ((9, 9), (99, 9), (99, 99), (999, 99), (999, 999))
_FIRST_MIXED_LEVEL = 3
_WORDINGS = ("{}=？", "计算：{}", "{}等于多少？", "请算一算：{}=", "{}的结果是多少？")
_SYMBOL_NAMES = {"+": "加", "-": "减", "×": "乘以", "÷": "除以"}


def draw_arithmetic(rng: random.Random, difficulty: int) -> Problem:
    """Return a random problem of a difficulty from 1 to `MAX_DIFFICULTY`."""
    operations = ["addition", "subtraction", "multiplication", "division"]
    if difficulty >= _FIRST_MIXED_LEVEL:
        operations.append("two operations")
    operation = rng.choice(operations)
    limit = 10**difficulty - 1
    first, second = rng.randint(1, limit), rng.randint(1, limit)
    first_factor, second_factor = (rng.randint(2, limit) for limit in _FACTORS[difficulty - 1])
    sum_text = ""
    working = ""
    if operation == "addition":
        expression, answer = f"{first}+{second}", first + second
        # 3+5 and 5+3 are one sum.
        sum_text = "+".join(map(str, sorted((first, second))))
    elif operation == "subtraction":
        if difficulty < _FIRST_MIXED_LEVEL:
            first, second = max(first, second), min(first, second)
        expression, answer = f"{first}-{second}", first - second
    elif operation == "multiplication":
        if rng.random() < 0.5:
            first_factor, second_factor = second_factor, first_factor
        expression, answer = f"{first_factor}×{second_factor}", first_factor * second_factor
        sum_text = "×".join(map(str, sorted((first_factor, second_factor))))
    elif operation == "division":
        product = first_factor * second_factor
        expression, answer = f"{product}÷{second_factor}", first_factor
    else:
        expression, working, answer = _draw_two_operations(rng, first, first_factor, second_factor)
    question = _put_into_words(rng, expression)
    solution = f"{expression}={working}{answer}"
    return Problem(
        question, Fraction(answer), operation, difficulty, solution, sum_text or expression
    )


def _draw_two_operations(
    rng: random.Random, number: int, first_factor: int, second_factor: int
) -> tuple[str, str, int]:
    """Return an expression, the step before its answer with `=`, and its answer."""
    product = first_factor * second_factor
    kind = rng.randrange(4)
    if kind == 0:
        expression = f"{number}+{first_factor}×{second_factor}"
        return expression, f"{number}+{product}=", number + product
    if kind == 1:
        expression = f"{number}-{first_factor}×{second_factor}"
        return expression, f"{number}-{product}=", number - product
    if kind == 2:
        total = number + first_factor
        expression = f"({number}+{first_factor})×{second_factor}"
        return expression, f"{total}×{second_factor}=", total * second_factor
    expression = f"{product}÷{second_factor}+{number}"
    return expression, f"{first_factor}+{number}=", first_factor + number


def _put_into_words(rng: random.Random, expression: str) -> str:
    """Return a question for the value of an expression."""
    if rng.random() < 0.2 and "(" not in expression:
        for symbol, name in _SYMBOL_NAMES.items():
            expression = expression.replace(symbol, name)
        return f"{expression}等于多少？"
    return rng.choice(_WORDINGS).format(expression)
