"""Invented order: numbers that are compared by something else than their size.

Rule: only one digit counts, or the sum of the digits. Against common sense: the smaller number
counts as the larger one. Common sense: the larger number is the larger one.
"""

import random
from collections.abc import Callable

from evaluate.rules.families.words import draw_names
from evaluate.rules.item import Item, shuffled

NAME = "order"
NUM_PEOPLE = 5
# What is compared, its unit, the words for the larger and the smaller.
_MEASURES = (
    ("得分", "分", "高", "低"),
    ("存款", "元", "多", "少"),
    ("体重", "千克", "重", "轻"),
    ("身高", "厘米", "高", "矮"),
)
_QUESTIONS = (
    "{list}。谁的{measure}最{word}？",
    "{list}。按{measure}比一比，最{word}的是谁？",
    "五个人的{measure}是这样的：{list}。{measure}最{word}的人是谁？",
)
_RULES = (
    "在这里比{measure}只看{key}：{key}大的算{large}，{key}小的算{small}。",
    "规定：两个人的{measure}谁{large}谁{small}，要比{key}，{key}大就算{large}，{key}小就算{small}。",
)
_CONTRARY_RULES = (
    "在这里{measure}的大小是反过来的：数越小算越{large}，数越大算越{small}。",
    "规定：{measure}的数大反而算{small}，数小反而算{large}。",
)
# What counts, in words and as a function.
_KEYS: tuple[tuple[str, Callable[[int], int]], ...] = (
    ("个位数字", lambda number: number % 10),
    ("十位数字", lambda number: number // 10 % 10),
    ("各位数字的和", lambda number: sum(map(int, str(number)))),
)
# By difficulty: the smallest and the largest number, and how many of the keys there are.
_LIMITS = {1: (11, 99, 1), 2: (101, 199, 2), 3: (101, 999, 3)}


def draw(rng: random.Random, difficulty: int) -> Item | None:
    """Return an item with drawn numbers and words; None if an answer is not unique."""
    lowest, highest, num_keys = _LIMITS[difficulty]
    numbers = rng.sample(range(lowest, highest + 1), NUM_PEOPLE)
    key_name, key = rng.choice(_KEYS[:num_keys])
    measure, unit, large, small = rng.choice(_MEASURES)
    asks_largest = rng.random() < 0.5
    # The numbers in the order that is asked for, by the key and by their size.
    by_key = sorted(numbers, key=key, reverse=asks_largest)
    by_size = sorted(numbers, reverse=asks_largest)
    answers = {by_key[0], by_size[0], by_size[-1]}
    if key(by_key[0]) == key(by_key[1]) or len(answers) < 3:
        return None
    names = draw_names(rng, NUM_PEOPLE)
    name_of = dict(zip(numbers, names, strict=True))
    words = {"measure": measure, "large": large, "small": small}
    return Item(
        family=NAME,
        values=(tuple(sorted(numbers)),),
        question=rng.choice(_QUESTIONS).format(
            list="，".join(f"{name}{number}{unit}" for number, name in name_of.items()),
            measure=measure,
            word=large if asks_largest else small,
        ),
        rule=rng.choice(_RULES).format(key=key_name, **words),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(**words),
        right=name_of[by_key[0]],
        contrary=name_of[by_size[-1]],
        common=name_of[by_size[0]],
        candidates=shuffled(rng, names),
        is_number=False,
    )
