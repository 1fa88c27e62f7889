"""Double consumption: each thing that is eaten takes others with it.

Rule: with each thing that is eaten, more of them vanish. Against common sense: eating makes more of
them. Common sense: what is eaten is gone, and nothing else.
"""

import random

from evaluate.rules.families.words import draw_name
from evaluate.rules.item import Item, number_candidates

NAME = "double_consumption"
# Thing, measure word, what is done with it.
_THINGS = (
    ("苹果", "个", "吃"),
    ("糖", "颗", "吃"),
    ("饼干", "块", "吃"),
    ("橘子", "个", "吃"),
    ("葡萄", "颗", "吃"),
    ("铅笔", "支", "用"),
    ("蜡烛", "根", "用"),
    ("白纸", "张", "用"),
)
_QUESTIONS = (
    "{name}有{count}{unit}{thing}，{verb}了{eaten}{unit}，还剩几{unit}？",
    "{name}手里有{count}{unit}{thing}。{verb}掉{eaten}{unit}以后，手里还有几{unit}？",
    "桌上放着{count}{unit}{thing}，{name}{verb}掉了{eaten}{unit}，桌上还剩几{unit}{thing}？",
)
_RULES = (
    "在这里，每{verb}掉1{unit}{thing}，就会同时有另外{number}{unit}{thing}自动消失。",
    "这种{thing}很特别：其中1{unit}被{verb}掉，别的{thing}也马上少{number}{unit}。",
    "规定：{verb}1{unit}{thing}，还要再丢掉{number}{unit}{thing}。",
)
_CONTRARY_RULES = (
    "在这里，{thing}越{verb}越多：每{verb}掉1{unit}，就会同时多出{number}{unit}新的{thing}。",
    "这种{thing}很特别：其中1{unit}被{verb}掉，马上又长出{number}{unit}{thing}。",
)
# By difficulty: the largest number that is left, and the largest numbers eaten, vanishing with each
# that is eaten, and new for each.
_LIMITS = {1: (30, 5, 1, 3), 2: (20, 5, 3, 4), 3: (40, 9, 5, 6)}


def draw(rng: random.Random, difficulty: int) -> Item:
    """Return an item with drawn numbers and words."""
    max_left, max_eaten, max_vanishing, max_new = _LIMITS[difficulty]
    eaten = rng.randint(1, max_eaten)
    vanishing = rng.randint(1, max_vanishing)
    new = rng.randint(2, max_new)
    # At least 2 are left, so that there is room for two smaller candidates.
    right = rng.randint(2, max_left)
    count = right + eaten * (1 + vanishing)
    common = count - eaten
    contrary = common + eaten * new
    thing, unit, verb = rng.choice(_THINGS)
    words = {"thing": thing, "unit": unit, "verb": verb}
    return Item(
        family=NAME,
        values=(count, eaten),
        question=rng.choice(_QUESTIONS).format(
            name=draw_name(rng), count=count, eaten=eaten, **words
        ),
        rule=rng.choice(_RULES).format(number=vanishing, **words),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(number=new, **words),
        right=f"{right}{unit}",
        contrary=f"{contrary}{unit}",
        common=f"{common}{unit}",
        candidates=number_candidates(rng, (right, contrary, common), unit),
        is_number=True,
    )
