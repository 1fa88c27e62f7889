"""Chinese word problems of one to three steps, in five levels of difficulty.

| level | steps | numbers to |
|---|---|---|
| 1 | 1 | 20 |
| 2 | 1 | 100 |
| 3 | 2 | 100 |
| 4 | 2 | 1,000 |
| 5 | 3 | 1,000 |

Products of two digits are of all levels; what is paid may be a little more.
Every number, the answer included, is whole and not negative.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from evaluate.maths.problems import Problem

MAX_DIFFICULTY = 5
# The number of steps and the largest number of each level.
_LEVELS = ((1, 20), (1, 100), (2, 100), (2, 1000), (3, 1000))
_NAMES = ("小明", "小红", "小刚", "小丽", "小华", "小芳", "小军", "小雨", "王老师", "李叔叔")
# Things, and the measure words that count them.
_THINGS = (
    ("苹果", "个"),
    ("铅笔", "支"),
    ("本子", "本"),
    ("糖", "颗"),
    ("邮票", "张"),
    ("气球", "个"),
    ("贝壳", "枚"),
    ("卡片", "张"),
    ("橘子", "个"),
    ("彩带", "条"),
)


@dataclass(frozen=True, slots=True)
class _Sum:
    """The numbers of a problem, by their names in its wordings, and what they give.

    `working` is the calculation without its result, a step each.
    """

    numbers: dict[str, int]
    working: tuple[str, ...]
    results: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Family:
    """Problems with the same calculation, in several wordings.

    `draw` returns random numbers, none of which is above the limit if that can be. The wordings
    have the numbers, `name`, `other`, `thing` and `unit` in braces; `answer_unit` is the unit of
    the answer, or empty for that of the thing.
    """

    operation: str
    num_steps: int
    draw: Callable[[random.Random, int], _Sum]
    wordings: tuple[str, ...]
    answer_unit: str = ""


def draw_word_problem(rng: random.Random, difficulty: int) -> Problem:
    """Return a random problem of a difficulty from 1 to `MAX_DIFFICULTY`."""
    num_steps, limit = _LEVELS[difficulty - 1]
    family = rng.choice([each for each in _FAMILIES if each.num_steps == num_steps])
    drawn = family.draw(rng, limit)
    name, other = rng.sample(_NAMES, 2)
    thing, unit = rng.choice(_THINGS)
    question = rng.choice(family.wordings).format(
        name=name, other=other, thing=thing, unit=unit, **drawn.numbers
    )
    steps = [f"{step}={result}" for step, result in zip(drawn.working, drawn.results, strict=True)]
    answer = drawn.results[-1]
    solution = f"{'，'.join(steps)}。答：{answer}{family.answer_unit or unit}。"
    # 3+5 and 5+3 are one sum.
    sum_text = f"{family.operation} {sorted(drawn.numbers.values())}"
    return Problem(question, Fraction(answer), family.operation, difficulty, solution, sum_text)


def _draw_sum(rng: random.Random, limit: int) -> _Sum:
    a = rng.randint(1, limit - 1)
    b = rng.randint(1, limit - a)
    return _Sum({"a": a, "b": b}, (f"{a}+{b}",), (a + b,))


def _draw_difference(rng: random.Random, limit: int) -> _Sum:
    a = rng.randint(2, limit)
    b = rng.randint(1, a - 1)
    return _Sum({"a": a, "b": b}, (f"{a}-{b}",), (a - b,))


def _draw_factors(rng: random.Random, limit: int) -> tuple[int, int]:
    """Return two factors of a product up to `limit`, or of one digit; the first is of one digit."""
    a = rng.randint(2, 9)
    # Without 9 × 9, most quotients of level 1 would be 2.
    return a, rng.randint(2, max(9, limit // a))


def _draw_product(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit)
    return _Sum({"a": a, "b": b}, (f"{a}×{b}",), (a * b,))


def _draw_quotient(rng: random.Random, limit: int) -> _Sum:
    a, quotient = _draw_factors(rng, limit)
    total = a * quotient
    return _Sum({"total": total, "a": a}, (f"{total}÷{a}",), (quotient,))


def _draw_product_and_sum(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit // 2)
    c = rng.randint(1, limit - limit // 2)
    product = a * b
    return _Sum({"a": a, "b": b, "c": c}, (f"{a}×{b}", f"{product}+{c}"), (product, product + c))


def _draw_product_and_difference(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit)
    product = a * b
    c = rng.randint(1, product - 1)
    return _Sum({"a": a, "b": b, "c": c}, (f"{a}×{b}", f"{product}-{c}"), (product, product - c))


def _draw_sum_and_difference(rng: random.Random, limit: int) -> _Sum:
    a = rng.randint(1, limit - 1)
    b = rng.randint(1, limit - a)
    c = rng.randint(1, a + b - 1)
    return _Sum({"a": a, "b": b, "c": c}, (f"{a}+{b}", f"{a + b}-{c}"), (a + b, a + b - c))


def _draw_quotient_and_sum(rng: random.Random, limit: int) -> _Sum:
    a, quotient = _draw_factors(rng, limit)
    total = a * quotient
    c = rng.randint(1, limit)
    return _Sum(
        {"total": total, "a": a, "c": c},
        (f"{total}÷{a}", f"{quotient}+{c}"),
        (quotient, quotient + c),
    )


def _draw_change(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit)
    product = a * b
    # What is paid is a whole number of tens.
    c = (product // 10 + rng.randint(1, 5)) * 10
    return _Sum({"a": a, "b": b, "c": c}, (f"{a}×{b}", f"{c}-{product}"), (product, c - product))


def _draw_bus(rng: random.Random, limit: int) -> _Sum:
    a = rng.randint(2, limit // 2)
    b = rng.randint(1, a - 1)
    c, d = rng.randint(1, limit // 4), rng.randint(1, limit // 4)
    left, after_first, last = a - b, a - b + c, a - b + c + d
    working = (f"{a}-{b}", f"{left}+{c}", f"{after_first}+{d}")
    return _Sum({"a": a, "b": b, "c": c, "d": d}, working, (left, after_first, last))


def _draw_two_products(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit // 2)
    c, d = _draw_factors(rng, limit // 2)
    working = (f"{a}×{b}", f"{c}×{d}", f"{a * b}+{c * d}")
    return _Sum({"a": a, "b": b, "c": c, "d": d}, working, (a * b, c * d, a * b + c * d))


def _draw_change_of_two(rng: random.Random, limit: int) -> _Sum:
    a, b = _draw_factors(rng, limit // 2)
    c = rng.randint(1, limit // 4)
    total = a * b + c
    d = (total // 10 + rng.randint(1, 5)) * 10
    working = (f"{a}×{b}", f"{a * b}+{c}", f"{d}-{total}")
    return _Sum({"a": a, "b": b, "c": c, "d": d}, working, (a * b, total, d - total))


_FAMILIES = (
    _Family(
        "addition",
        1,
        _draw_sum,
        (
            "{name}有{a}{unit}{thing}，{other}又送给{name}{b}{unit}，{name}现在有多少{unit}{thing}？",
            "篮子里有{a}{unit}{thing}，又放进去{b}{unit}，现在篮子里一共有多少{unit}{thing}？",
            "{name}上午数了{a}{unit}{thing}，下午数了{b}{unit}，{name}今天数了多少{unit}{thing}？",
            "{name}有{a}{unit}{thing}，{other}比{name}多{b}{unit}，{other}有多少{unit}{thing}？",
        ),
    ),
    _Family(
        "subtraction",
        1,
        _draw_difference,
        (
            "{name}有{a}{unit}{thing}，送给{other}{b}{unit}，{name}还剩多少{unit}{thing}？",
            "盒子里有{a}{unit}{thing}，拿走了{b}{unit}，盒子里还有多少{unit}{thing}？",
            "{name}有{a}{unit}{thing}，{other}有{b}{unit}{thing}，{name}比{other}多多少{unit}？",
            "商店有{a}{unit}{thing}，卖掉一些以后还剩{b}{unit}，卖掉了多少{unit}{thing}？",
        ),
    ),
    _Family(
        "multiplication",
        1,
        _draw_product,
        (
            "每个盒子里有{b}{unit}{thing}，{a}个盒子里一共有多少{unit}{thing}？",
            "{name}每天买{b}{unit}{thing}，{a}天一共买了多少{unit}{thing}？",
            "有{a}个小朋友，每人分到{b}{unit}{thing}，一共分了多少{unit}{thing}？",
            "{name}有{b}{unit}{thing}，{other}的{thing}是{name}的{a}倍，{other}有多少{unit}？",
        ),
    ),
    _Family(
        "division",
        1,
        _draw_quotient,
        (
            "把{total}{unit}{thing}平均分给{a}个小朋友，每人分到多少{unit}？",
            "{name}把{total}{unit}{thing}装进{a}个盒子，每盒一样多，每盒有多少{unit}？",
            "{name}有{total}{unit}{thing}，是{other}的{a}倍，{other}有多少{unit}{thing}？",
            "{total}{unit}{thing}，{a}天用完，每天用得一样多，每天用多少{unit}？",
        ),
    ),
    _Family(
        "multiplication, addition",
        2,
        _draw_product_and_sum,
        (
            "{name}有{a}盒{thing}，每盒{b}{unit}，另外还有{c}{unit}，一共有多少{unit}{thing}？",
            "{name}每天折{b}{unit}{thing}，折了{a}天，{other}又送来{c}{unit}，现在有多少{unit}？",
            "有{a}个小朋友，每人分到{b}{unit}{thing}，最后还多出{c}{unit}，原来有多少{unit}{thing}？",
        ),
    ),
    _Family(
        "multiplication, subtraction",
        2,
        _draw_product_and_difference,
        (
            "{name}买了{a}盒{thing}，每盒{b}{unit}，送给{other}{c}{unit}，还剩多少{unit}？",
            "商店有{a}箱{thing}，每箱{b}{unit}，卖掉了{c}{unit}，还有多少{unit}{thing}？",
            "{a}个袋子里各有{b}{unit}{thing}，从里面一共拿出{c}{unit}，袋子里还有多少{unit}？",
        ),
    ),
    _Family(
        "addition, subtraction",
        2,
        _draw_sum_and_difference,
        (
            "{name}有{a}{unit}{thing}，又买了{b}{unit}，后来用掉{c}{unit}，现在有多少{unit}？",
            "箱子里有{a}{unit}{thing}，放进{b}{unit}，再拿出{c}{unit}，箱子里有多少{unit}{thing}？",
            "{name}和{other}分别有{a}{unit}和{b}{unit}{thing}，两人一共送出{c}{unit}，还剩多少{unit}？",
        ),
    ),
    _Family(
        "division, addition",
        2,
        _draw_quotient_and_sum,
        (
            "{total}{unit}{thing}平均分给{a}个人，{name}分到一份后又买了{c}{unit}，"
            "{name}有多少{unit}？",
            "{name}把{total}{unit}{thing}平均放进{a}个盒子，又往其中一个盒子里放{c}{unit}，"
            "这个盒子里有多少{unit}？",
        ),
    ),
    _Family(
        "multiplication, change",
        2,
        _draw_change,
        (
            "每{unit}{thing}{b}元，{name}买了{a}{unit}，付了{c}元，应该找回多少元？",
            "{name}带了{c}元，买了{a}{unit}{thing}，每{unit}{b}元，还剩多少元？",
        ),
        answer_unit="元",
    ),
    _Family(
        "subtraction, addition, addition",
        3,
        _draw_bus,
        (
            "车上有{a}人，第一站下去{b}人，上来{c}人，第二站又上来{d}人，车上现在有多少人？",
            "图书馆里有{a}人，走了{b}人，又来了{c}人，后来再来{d}人，图书馆里现在有多少人？",
        ),
        answer_unit="人",
    ),
    _Family(
        "two products, addition",
        3,
        _draw_two_products,
        (
            "{name}有{a}盒{thing}，每盒{b}{unit}，{other}有{c}盒，每盒{d}{unit}，"
            "他们一共有多少{unit}{thing}？",
            "商店上午卖出{a}箱{thing}，每箱{b}{unit}，下午卖出{c}箱，每箱{d}{unit}，"
            "今天卖出多少{unit}？",
        ),
    ),
    _Family(
        "multiplication, addition, change",
        3,
        _draw_change_of_two,
        (
            "{name}买了{a}{unit}{thing}，每{unit}{b}元，又买了一个{c}元的书包，付了{d}元，"
            "应该找回多少元？",
            "{name}带了{d}元，先花{c}元买书，再买{a}{unit}{thing}，每{unit}{b}元，最后剩多少元？",
        ),
        answer_unit="元",
    ),
)
