"""Transitive relation: an invented relation between people that is passed on.

Rule: who stands in the relation to someone stands in it to everyone that this one does. Against
common sense: a sentence about two people means that the second stands in the relation to the first.
Common sense: people stand in the relation to those that a sentence says, and to no others.
"""

import random

from evaluate.rules.families.words import draw_names
from evaluate.rules.item import Item, number_candidates

NAME = "transitive"
_UNIT = "个"
_RELATIONS = ("嘟噜", "咕咚", "呼啦", "叮当", "咔嗒", "哗啦")
_QUESTIONS = (
    "{facts}。{name}一共{relation}几个人？",
    "已知{facts}。被{name}{relation}的一共有几个人？",
    "{facts}。数一数，{name}{relation}的有几个人？",
)
_RULES = (
    "“{relation}”会传下去：甲{relation}乙，乙{relation}丙，那么甲也{relation}丙。",
    "规定：一个人{relation}谁，也就{relation}那个人{relation}的所有人。",
)
_CONTRARY_RULES = (
    "这里的话要倒过来听：说“甲{relation}乙”，其实是乙{relation}甲，甲并不{relation}乙。",
    "规定：写在“{relation}”后面的人{relation}写在前面的人，前面的人不{relation}后面的人。",
)
# By difficulty: the ranges of how many people stand in the relation to the one asked about, how
# many this one does to, and how many more these do to.
_RANGES = {
    1: ((1, 5), (1, 3), (1, 3)),
    2: ((1, 6), (2, 3), (2, 4)),
    3: ((1, 6), (2, 4), (3, 5)),
}


def draw(rng: random.Random, difficulty: int) -> Item | None:
    """Return an item with drawn people and facts; None if its answers do not differ."""
    num_before, num_after, num_further = (rng.randint(*limits) for limits in _RANGES[difficulty])
    common, right, contrary = num_after, num_after + num_further, num_before
    if contrary in (common, right):
        return None
    # Person 0 is asked about.
    people = range(1 + num_before + num_after + num_further)
    before = people[1 : 1 + num_before]
    after = people[1 + num_before : 1 + num_before + num_after]
    facts = [(person, 0) for person in before] + [(0, person) for person in after]
    for person in people[1 + num_before + num_after :]:
        # After any of those that are reached so far.
        facts.append((rng.randrange(after[0], person), person))
    facts = rng.sample(facts, len(facts))
    names = draw_names(rng, len(people))
    relation = rng.choice(_RELATIONS)
    return Item(
        family=NAME,
        values=(relation, tuple(facts)),
        question=rng.choice(_QUESTIONS).format(
            facts="，".join(f"{names[first]}{relation}{names[second]}" for first, second in facts),
            name=names[0],
            relation=relation,
        ),
        rule=rng.choice(_RULES).format(relation=relation),
        contrary_rule=rng.choice(_CONTRARY_RULES).format(relation=relation),
        right=f"{right}{_UNIT}",
        contrary=f"{contrary}{_UNIT}",
        common=f"{common}{_UNIT}",
        candidates=number_candidates(rng, (right, contrary, common), _UNIT),
        is_number=True,
    )
