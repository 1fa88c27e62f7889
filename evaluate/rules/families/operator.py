"""Invented operator: a sign that no one knows, such as a◎b = 2a + b.

Rule: a formula with drawn coefficients. Against common sense: the sign is the plus sign, but adding
makes less, as much as it otherwise makes more. Common sense: a sign between two numbers that no one
explains is taken for an addition.
"""

import random

from evaluate.rules.item import Item, number_candidates

NAME = "operator"
_SIGNS = "◎※⊙☆△□"
_QUESTIONS = ("{term}等于几？", "请计算：{term}。", "求{term}的得数。", "{term}的结果是多少？")
_RULES = (
    "规定一种新运算：a{sign}b＝{first}×a＋{second}×b。",
    "“{sign}”这样算：把前面的数乘{first}，后面的数乘{second}，再加起来。",
    "符号{sign}的意思是：x{sign}y＝{first}x＋{second}y。",
)
_CONTRARY_RULES = (
    "“{sign}”就是加号，可是在这里相加和平常相反：加上几，就会减少几。",
    "这里的人用“{sign}”表示加，但是越加越少：加上几，数就小了几。",
)
# By difficulty: the largest coefficient, the largest number, and how many numbers there are.
_LIMITS = {1: (3, 9, 2), 2: (5, 20, 2), 3: (5, 9, 3)}


def draw(rng: random.Random, difficulty: int) -> Item | None:
    """Return an item with drawn numbers and words; None if its answers do not differ."""
    max_coefficient, max_number, num_numbers = _LIMITS[difficulty]
    first, second = (rng.randint(1, max_coefficient) for _ in range(2))
    others = [rng.randint(1, max_number) for _ in range(num_numbers - 1)]
    # At least 2 more than the others, so that there is room for two smaller candidates.
    numbers = [sum(others) + rng.randint(2, max_number), *others]
    right = numbers[0]
    for number in others:
        right = first * right + second * number
    common = sum(numbers)
    contrary = numbers[0] - sum(others)
    if right == common:
        return None
    sign = rng.choice(_SIGNS)
    term = f"{numbers[0]}{sign}{numbers[1]}"
    if num_numbers == 3:
        term = f"({term}){sign}{numbers[2]}"
    return Item(
        family=NAME,
        values=(tuple(numbers),),
        question=rng.choice(_QUESTIONS).format(term=term),
        rule=rng.choice(_RULES).format(sign=sign, first=first, second=second),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(sign=sign),
        right=str(right),
        contrary=str(contrary),
        common=str(common),
        candidates=number_candidates(rng, (right, contrary, common), ""),
        is_number=True,
    )
