"""Invented calendar: a week or a year of another length.

Rule: a week has 4 to 6 days, or a year 8 to 11 months. Against common sense: the days or months run
backwards. Common sense: a week of 7 days, a year of 12 months.
"""

import random

from evaluate.rules.item import Item, shuffled

NAME = "calendar"
_NUM_CANDIDATES = 5
_DAYS = tuple(f"星期{number}" for number in "一二三四五六日")
_MONTHS = tuple(f"{number}月" for number in range(1, 13))
_DAY_QUESTIONS = (
    "今天是{now}，再过{steps}天是星期几？",
    "现在是{now}，{steps}天以后是星期几？",
    "如果今天是{now}，那么往后数{steps}天，是星期几？",
)
_MONTH_QUESTIONS = (
    "现在是{now}，再过{steps}个月是几月？",
    "这个月是{now}，{steps}个月以后是几月？",
    "如果现在是{now}，那么往后数{steps}个月，是几月？",
)
_DAY_RULES = (
    "这个星球上一个星期只有{length}天：从星期一到{last}，{last}的后一天又是星期一。",
    "这里的日历上，一周有{length}天，从星期一排到{last}，接着又从星期一开始。",
)
_MONTH_RULES = (
    "这个星球上一年只有{length}个月：从1月到{last}，{last}过后又是1月。",
    "这里的日历上，一年有{length}个月，从1月排到{last}，接着又从1月开始。",
)
_CONTRARY_DAY_RULES = (
    "这个星球上日子是倒着过的：星期二的后一天是星期一，星期一的后一天是星期日。",
    "这里的日历倒着走：过完星期三是星期二，过完星期一是星期日。",
)
_CONTRARY_MONTH_RULES = (
    "这个星球上月份是倒着过的：2月过后是1月，1月过后是12月。",
    "这里的日历倒着走：过完3月是2月，过完1月是12月。",
)
# By difficulty: the range of how many days and months pass.
_DAY_STEPS = {1: (1, 6), 2: (7, 20), 3: (21, 60)}
_MONTH_STEPS = {1: (1, 11), 2: (12, 30), 3: (31, 99)}


def draw(rng: random.Random, difficulty: int) -> Item | None:
    """Return an item with drawn numbers and words; None if its answers do not differ."""
    is_week = rng.random() < 0.5
    names = _DAYS if is_week else _MONTHS
    length = rng.randint(4, 6) if is_week else rng.randint(8, 11)
    steps = rng.randint(*(_DAY_STEPS if is_week else _MONTH_STEPS)[difficulty])
    now = rng.randrange(length)
    right = names[(now + steps) % length]
    common = names[(now + steps) % len(names)]
    contrary = names[(now - steps) % len(names)]
    answers = {right, common, contrary}
    if len(answers) < 3:
        return None
    others = [name for name in names if name not in answers]
    wrong = rng.sample(others, _NUM_CANDIDATES - len(answers))
    rules = _DAY_RULES if is_week else _MONTH_RULES
    return Item(
        family=NAME,
        values=(is_week, now, steps),
        question=rng.choice(_DAY_QUESTIONS if is_week else _MONTH_QUESTIONS).format(
            now=names[now], steps=steps
        ),
        rule=rng.choice(rules).format(length=length, last=names[length - 1]),
        contrary_rule=rng.choice(_CONTRARY_DAY_RULES if is_week else _CONTRARY_MONTH_RULES),
        right=right,
        contrary=contrary,
        common=common,
        candidates=shuffled(rng, [right, common, contrary, *wrong]),
        is_number=not is_week,
    )
