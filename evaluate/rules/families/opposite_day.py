"""Opposite day: orders that mean the opposite of what they say.

Rule: it is a game in which the action, or the thing, of an order becomes its opposite. Against
common sense: words have the meaning of their opposites, those of the other part of the order.
Common sense: an order means what it says.
"""

import random

from evaluate.rules.families.words import draw_name
from evaluate.rules.item import Item, shuffled

NAME = "opposite_day"
# Orders: an action and its opposite, a property and its opposite, a noun.
_ORDERS = (
    ("举起", "放下", "左", "右", "手"),
    ("打开", "关上", "前", "后", "门"),
    ("走进", "走出", "东", "西", "屋"),
    ("戴上", "摘下", "新", "旧", "帽"),
    ("穿上", "脱下", "厚", "薄", "衣"),
    ("升起", "降下", "黑", "白", "旗"),
    ("点亮", "吹灭", "大", "小", "灯"),
    ("搬来", "搬走", "长", "短", "凳"),
    ("装满", "倒空", "高", "矮", "瓶"),
    ("插上", "拔下", "粗", "细", "管"),
)
_QUESTIONS = (
    "{name}听到口令：“{order}。”{name}该怎么做？",
    "老师对{name}说：“{order}。”照老师的意思，{name}要做什么？",
    "口令是“{order}”，{name}应该做什么？",
)
# Rules that reverse the action, and rules that reverse the property.
_ACTION_RULES = (
    "今天是反话日：口令里的动作要反着做，东西不变。",
    "这个游戏叫唱反调：叫你做什么动作，你就做相反的动作，对象照旧。",
)
_PROPERTY_RULES = (
    "今天是反话日：口令里的东西要换成相反的那个，动作不变。",
    "这个游戏叫唱反调：动作照做，但是要选和口令里相反的东西。",
)
_CONTRARY_RULES = (
    "在这里，{words}，字的意思和平常正好相反。",
    "这里的人说话和我们不同：{words}。",
)
# An order at difficulty 1, two at 2, three at 3.


def draw(rng: random.Random, difficulty: int) -> Item:
    """Return an item with drawn words."""
    # Each order as it is said: (action, property, noun), and the opposites of the first two.
    said = []
    opposites: dict[str, str] = {}
    for action, other_action, adjective, other_adjective, noun in rng.sample(_ORDERS, difficulty):
        opposites |= {action: other_action, other_action: action}
        opposites |= {adjective: other_adjective, other_adjective: adjective}
        said.append(
            (rng.choice([action, other_action]), rng.choice([adjective, other_adjective]), noun)
        )
    reverses_action = rng.random() < 0.5

    def act(*, action_reversed: bool, property_reversed: bool) -> str:
        parts = []
        for action, adjective, noun in said:
            done = opposites[action] if action_reversed else action
            which = opposites[adjective] if property_reversed else adjective
            parts.append(done + which + noun)
        return "，".join(parts)

    order = act(action_reversed=False, property_reversed=False)
    right = act(action_reversed=reverses_action, property_reversed=not reverses_action)
    contrary = act(action_reversed=not reverses_action, property_reversed=reverses_action)
    both = act(action_reversed=True, property_reversed=True)
    words = [adjective if reverses_action else action for action, adjective, _ in said]
    return Item(
        family=NAME,
        values=(tuple(said),),
        question=rng.choice(_QUESTIONS).format(name=draw_name(rng), order=order),
        rule=rng.choice(_ACTION_RULES if reverses_action else _PROPERTY_RULES),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(
            words="，".join(
                f"“{word}”指的是{opposites[word]}，“{opposites[word]}”指的是{word}"
                for word in words
            )
        ),
        right=right,
        contrary=contrary,
        common=order,
        candidates=shuffled(rng, [right, contrary, order, both]),
        is_number=False,
    )
