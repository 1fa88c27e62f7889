"""Substitution cipher: words that stand for other words.

Rule: a table of words and what they stand for, some of which the message does not use. Against
common sense: who is written first does not act but is acted on. Common sense: the message means
what it says.
"""

import random

from evaluate.rules.families.words import draw_name
from evaluate.rules.item import Item, shuffled

NAME = "cipher"
_ANIMALS = "猫狗鸟鱼马牛羊鸡鸭兔猴虎"
_VERBS = "追看找帮等咬"
_QUESTIONS = (
    "{name}收到一张纸条，上面写着“{message}”。纸条说的是什么？",
    "{name}写下“{message}”三个字，意思是什么？",
    "墙上写着“{message}”，{name}读到的是什么意思？",
)
_RULES = (
    "这里写字要用暗语：{table}。",
    "字要换着读：{table}，别的字照旧。",
)
_CONTRARY_RULES = (
    "这里的人写话前后颠倒：写“甲{verb}乙”，意思是乙{verb}甲。",
    "这里写在后面的才是做事的：写成“甲{verb}乙”，其实是乙{verb}甲。",
)
# By difficulty: animals in the table, and whether the verb stands for another one, too.
_LIMITS = {1: (3, False), 2: (5, False), 3: (7, True)}


def draw(rng: random.Random, difficulty: int) -> Item:
    """Return an item with drawn words."""
    num_entries, replaces_verb = _LIMITS[difficulty]
    keys = rng.sample(_ANIMALS, num_entries)
    subject, object_ = keys[:2]
    # What the words of the message stand for does not occur in the message itself.
    code = dict(zip(keys, _draw_meanings(rng, keys), strict=True))
    verb, meant_verb = rng.sample(_VERBS, 2)
    if replaces_verb:
        code[verb] = meant_verb
    else:
        meant_verb = verb
    entries = rng.sample(list(code.items()), len(code))
    message = subject + verb + object_
    right = code[subject] + meant_verb + code[object_]
    contrary = object_ + verb + subject
    both = code[object_] + meant_verb + code[subject]
    half = rng.choice([code[subject] + verb + object_, subject + verb + code[object_]])
    return Item(
        family=NAME,
        values=(message,),
        question=rng.choice(_QUESTIONS).format(name=draw_name(rng), message=message),
        rule=rng.choice(_RULES).format(
            table="，".join(f"“{word}”表示{meaning}" for word, meaning in entries)
        ),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(verb=verb),
        right=right,
        contrary=contrary,
        common=message,
        candidates=shuffled(rng, [right, contrary, message, both, half]),
        is_number=False,
    )


def _draw_meanings(rng: random.Random, keys: list[str]) -> list[str]:
    """Return another animal for each key, all different, and none of the first two keys."""
    while True:
        meanings = rng.sample([animal for animal in _ANIMALS if animal not in keys[:2]], len(keys))
        if all(key != meaning for key, meaning in zip(keys, meanings, strict=True)):
            return meanings
