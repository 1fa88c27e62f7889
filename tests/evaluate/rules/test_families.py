"""The items of all families: their answers by a second computation, from the text alone."""

import re
from collections import Counter

import pytest

from evaluate.rules.families import FAMILIES
from evaluate.rules.generate import DIFFICULTIES, draw_items
from evaluate.rules.item import FORMS, Item
from evaluate.rules.originals import ORIGINALS

NAMES = "小[一-龥]"
ACTIONS = "举起放下打开关上走进走出戴上摘下穿上脱下升起降下点亮吹灭搬来搬走装满倒空插上拔下"
PROPERTIES = "左右前后东西新旧厚薄黑白大小长短高矮粗细"
OPPOSITES = dict(re.findall("(..)(..)", ACTIONS) + re.findall("(.)(.)", PROPERTIES))
OPPOSITES |= {second: first for first, second in OPPOSITES.items()}


def _numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def _solve_double_consumption(question: str, rule: str) -> str:
    """Eat one by one."""
    left, eaten = _numbers(question)
    for _ in range(eaten):
        left -= 1
        if rule:
            change = _numbers(rule)[-1]
            left += change if re.search("多出|长出", rule) else -change
    unit = re.search(r"\d(\D)", question)
    assert unit is not None
    return f"{left}{unit[1]}"


def _solve_paired_death(question: str, rule: str) -> str:
    """Fell tree by tree, with a set of those alive."""
    pairs = re.findall(r"(?P<pair>.)1和(?P=pair)2", question)
    assert 2 * len(pairs) == _numbers(question)[0]
    alive = {f"{pair}{number}" for pair in pairs for number in "12"}
    rest = re.sub(r".1和.2", "", question)
    for number, tree in enumerate(re.findall("[甲乙丙丁戊己庚辛壬][12]", rest)):
        alive.discard(tree)
        if "新树" in rule:
            alive |= {f"new {number} {index}" for index in range(_numbers(rule)[-1])}
        elif rule:
            alive.discard(tree[0] + ("2" if tree[1] == "1" else "1"))
    return f"{len(alive)}棵"


def _solve_operator(question: str, rule: str) -> str:
    """Reduce the term from the left, by what the rule makes of two numbers."""
    result, *others = _numbers(question)
    for number in others:
        if coefficients := _numbers(rule):
            result = coefficients[0] * result + coefficients[1] * number
        else:
            result += -number if rule else number
    return str(result)


def _solve_order(question: str, rule: str) -> str:
    """Compare everyone with everyone."""
    people = {name: int(number) for name, number in re.findall(rf"({NAMES})(\d+)", question)}
    assert len(people) == 5
    wants_large = re.search("最[高多重]", question) is not None

    def size(name: str) -> int:
        digits = str(people[name])
        if "个位" in rule:
            return int(digits[-1])
        if "十位" in rule:
            return int(digits[-2])
        if "各位" in rule:
            return sum(map(int, digits))
        return -people[name] if rule else people[name]

    sign = 1 if wants_large else -1
    winners = [
        name
        for name in people
        if all(sign * size(name) > sign * size(other) for other in people if other != name)
    ]
    assert len(winners) == 1
    return winners[0]


def _solve_calendar(question: str, rule: str) -> str:
    """Turn the pages one by one."""
    names = [f"星期{number}" for number in "一二三四五六日"]
    if "月" in question:
        names = [f"{number}月" for number in range(1, 13)]
    *_, steps = _numbers(question)
    now = re.search("|".join(reversed(names)), question)
    assert now is not None
    page = names.index(now[0])
    is_backwards = "倒着" in rule
    if rule and not is_backwards:
        last = re.search(f"到({'|'.join(reversed(names))})", rule)
        assert last is not None
        names = names[: names.index(last[1]) + 1]
        assert len(names) == _numbers(rule)[0]
    for _ in range(steps):
        page += -1 if is_backwards else 1
        if page == len(names):
            page = 0
        if page < 0:
            page = len(names) - 1
    return names[page]


def _solve_cipher(question: str, rule: str) -> str:
    """Read the message word by word."""
    message = re.findall("“(.{3})”", question)[0]
    table = dict(re.findall("“(.)”表示(.)", rule))
    if rule and not table:
        assert "写成“甲" in rule or "写“甲" in rule
        return message[2] + message[1] + message[0]
    return "".join(table.get(word, word) for word in message)


def _solve_opposite_day(question: str, rule: str) -> str:
    """Replace the words that the rule names, or those of the kind that it names."""
    order = re.findall("“(.+?)。?”", question)[0]
    meanings = dict(re.findall("“(.+?)”指的是([^，。]+)", rule))
    parts = []
    for part in order.split("，"):
        action, adjective, noun = part[:2], part[2], part[3]
        if re.search("动作要反|相反的动作", rule):
            action = OPPOSITES[action]
        elif re.search("东西要换|相反的东西", rule):
            adjective = OPPOSITES[adjective]
        elif rule:
            action, adjective = meanings.get(action, action), meanings.get(adjective, adjective)
        parts.append(action + adjective + noun)
    return "，".join(parts)


def _solve_transitive(question: str, rule: str) -> str:
    """Add pairs of people until none can be added."""
    facts = re.findall(rf"({NAMES})([^小，。]+?)({NAMES})", question.split("。")[0])
    related = {(first, second) for first, _, second in facts}
    rest = question.split("。", 1)[1]
    person = re.search(NAMES, rest)
    assert person is not None
    if "倒过来" in rule or "写在" in rule:
        related = {(second, first) for first, second in related}
    elif rule:
        while True:
            passed_on = {
                (first, other)
                for first, second in related
                for third, other in related
                if second == third
            }
            if passed_on <= related:
                break
            related |= passed_on
    return f"{sum(first == person[0] for first, _ in related)}个"


SOLVERS = {
    "double_consumption": _solve_double_consumption,
    "paired_death": _solve_paired_death,
    "operator": _solve_operator,
    "order": _solve_order,
    "calendar": _solve_calendar,
    "cipher": _solve_cipher,
    "opposite_day": _solve_opposite_day,
    "transitive": _solve_transitive,
}


def _draw(family: str, count: int = 60) -> list[Item]:
    return [
        item
        for difficulty in DIFFICULTIES
        for item in draw_items(family, count, difficulty, 5, "test")
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_follow_from_the_text(family: str) -> None:
    """Answers of other numbers than the text has, and phrasings that mean something else."""
    for item in _draw(family):
        for form in FORMS:
            assert SOLVERS[family](item.question, item.passage(form)) == item.answer(form), item


def test_the_originals_have_the_answers_of_their_source() -> None:
    """Answers to the two items by hand that are not those of the generated families."""
    apples, trees = ORIGINALS
    for form in FORMS:
        assert _solve_double_consumption(apples.question, apples.passage(form)) == apples.answer(
            form
        )
    assert (apples.right, apples.common) == ("1个", "3个")
    assert (trees.right, trees.common) == ("8棵或6棵", "8棵")
    # Fell every pair of trees, and see how many are left: both in one pair, or in two.
    left = {
        10 - 2 * len({first // 2, second // 2}) for first in range(10) for second in range(first)
    }
    assert left == {8, 6}


@pytest.mark.parametrize("family", ["originals", *FAMILIES])
def test_candidates_have_each_answer_once(family: str) -> None:
    """Two rules with one answer, common sense that is right, and candidates twice."""
    for item in ORIGINALS if family == "originals" else _draw(family):
        answers = {item.right, item.contrary, item.common}
        assert len(answers) == 3
        assert answers <= set(item.candidates)
        assert len(set(item.candidates)) == len(item.candidates)
        assert len(item.candidates) == (4 if item.family == "opposite_day" else 5)
        are_numbers = all(re.fullmatch(r"\d+\D?", text) for text in item.candidates)
        assert are_numbers == item.is_number


@pytest.mark.parametrize("family", FAMILIES)
def test_no_place_and_no_size_gives_an_answer_away(family: str) -> None:
    """A right or common answer that tends to be first, longest, smallest or largest."""
    items = draw_items(family, 300, 1, 0, "test")
    num_candidates = len(items[0].candidates)
    for form in FORMS:
        positions = Counter(item.candidates.index(item.answer(form)) for item in items)
        expected = len(items) / num_candidates
        # Four standard deviations of a binomial distribution.
        deviation = 4 * (expected * (1 - 1 / num_candidates)) ** 0.5
        for position in range(num_candidates):
            assert abs(positions[position] - expected) < deviation, (form, positions)
        if not items[0].is_number:
            continue
        ranks = Counter(
            sorted(item.candidates, key=lambda text: _numbers(text)[0]).index(item.answer(form))
            for item in items
            if item.is_number
        )
        num_numbers = sum(ranks.values())
        assert max(ranks.values()) / num_numbers < 0.55, (form, ranks)
