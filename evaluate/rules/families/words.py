"""Names of people, for all families."""

import random

NAMES = tuple("小" + character for character in "明红刚丽华芳强军雨燕龙梅林文杰兰涛云")


def draw_name(rng: random.Random) -> str:
    """Return a name."""
    return rng.choice(NAMES)


def draw_names(rng: random.Random, count: int) -> list[str]:
    """Return different names."""
    return rng.sample(NAMES, count)
