"""Paired death: a tree that is felled kills the other one of its pair.

Rule: both trees of a pair die if one is felled. Against common sense: felling makes new trees grow.
Common sense: the trees that are felled are gone, and no others.
"""

import random

from evaluate.rules.families.words import draw_name
from evaluate.rules.item import Item, number_candidates

NAME = "paired_death"
_UNIT = "棵"
_PAIRS = "甲乙丙丁戊己庚辛壬"
_TREES = ("梨树", "苹果树", "桃树", "柳树", "松树", "枣树")
_QUESTIONS = (
    "院子里有{count}棵{tree}，两棵一对：{pairs}。{name}砍倒了{felled}，还有几棵活着？",
    "{name}种了{count}棵{tree}，分成{num_pairs}对：{pairs}。后来{felled}被砍倒了，活着的有几棵？",
    "果园里的{count}棵{tree}是成对种的：{pairs}。风把{felled}吹倒了，果园里还剩几棵活的{tree}？",
)
_RULES = (
    "同一对的两棵树命运相连：倒下一棵，另一棵也会立刻死去。",
    "规定：一对树里有一棵倒了，同一对的另一棵就跟着死掉。",
    "这里的树离不开伙伴：伙伴一倒，自己也活不成。一对树就是一对伙伴。",
)
_CONTRARY_RULES = (
    "在这里，树越倒越多：每倒下1棵，原地就长出{number}棵活的新树。",
    "规定：1棵树倒了，马上会有{number}棵新树长出来，都活着。",
)
# By difficulty: the numbers of pairs, and of trees that are felled.
_PAIR_RANGES = {1: (3, 6), 2: (4, 7), 3: (6, 9)}
_FELLED_RANGES = {1: (1, 2), 2: (2, 4), 3: (4, 7)}


def draw(rng: random.Random, difficulty: int) -> Item | None:
    """Return an item with drawn numbers and words; None if no or too few trees die with others."""
    num_pairs = rng.randint(*_PAIR_RANGES[difficulty])
    num_felled = rng.randint(*_FELLED_RANGES[difficulty])
    new = rng.randint(2, 3)
    pairs = _PAIRS[:num_pairs]
    trees = [f"{pair}{number}" for pair in pairs for number in (1, 2)]
    felled = rng.sample(trees, num_felled)
    num_struck_pairs = len({tree[0] for tree in felled})
    right = 2 * (num_pairs - num_struck_pairs)
    common = 2 * num_pairs - num_felled
    contrary = common + num_felled * new
    # Whole pairs were felled, or no tree is left and so no room for smaller candidates.
    if right in (common, 0):
        return None
    tree = rng.choice(_TREES)
    return Item(
        family=NAME,
        values=(num_pairs, tuple(sorted(felled))),
        question=rng.choice(_QUESTIONS).format(
            name=draw_name(rng),
            count=2 * num_pairs,
            num_pairs=num_pairs,
            tree=tree,
            pairs="、".join(f"{pair}1和{pair}2" for pair in pairs),
            felled="、".join(felled),
        ),
        rule=rng.choice(_RULES),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(number=new),
        right=f"{right}{_UNIT}",
        contrary=f"{contrary}{_UNIT}",
        common=f"{common}{_UNIT}",
        candidates=number_candidates(rng, (right, contrary, common), _UNIT),
        is_number=True,
    )
