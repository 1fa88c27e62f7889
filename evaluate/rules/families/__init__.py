"""The families of generated items: one module for each, which says what its three forms are.

A module has `NAME` and `draw(rng, difficulty)`, which returns an item, or None if what was drawn
makes none.
"""

import random
from collections.abc import Callable

from evaluate.rules.families import (
    calendar,
    cipher,
    double_consumption,
    operator,
    opposite_day,
    order,
    paired_death,
    transitive,
)
from evaluate.rules.item import Item

FAMILIES: dict[str, Callable[[random.Random, int], Item | None]] = {
    module.NAME: module.draw
    for module in (
        double_consumption,
        paired_death,
        operator,
        order,
        calendar,
        cipher,
        opposite_day,
        transitive,
    )
}
