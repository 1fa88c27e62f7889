"""Draw the items of a family: the same for the same seed, and none of training in a test.

Whether an item is for training or for a test follows from the values in its question, not from
those of its rules: the parity of their SHA-256. Training and test items of a family therefore share
no values, whatever their seeds and difficulties: no question of a test has the numbers, or the
words, of a training item, under any rule.
"""

import hashlib
import random
from typing import Any, Literal

from common.errors import UserError
from evaluate.rules.families import FAMILIES
from evaluate.rules.item import Item

Split = Literal["train", "test"]
DIFFICULTIES = (1, 2, 3)
# Draws without a new item after which a family is taken to have no more.
_MAX_DRAWS_WITHOUT_ITEM = 2000
# Draws without new values after which other words and rules for the same values are taken.
_MAX_DRAWS_WITHOUT_VALUES = 100


def draw_items(family: str, count: int, difficulty: int, seed: int, split: Split) -> list[Item]:
    """Return `count` items of a family whose questions, with their rules, all differ.

    Items whose values no earlier one has come first, as long as there are such. Fewer items of the
    same seed are the first ones of more. Raises UserError if the family does not
    have that many.
    """
    # The hash of a string as a seed is the same in every process.
    rng = random.Random(f"{split} {seed} {difficulty} {family}")
    items: dict[tuple[str, str, str], Item] = {}
    values: set[tuple[Any, ...]] = set()
    num_draws = 0
    while len(items) < count:
        item = FAMILIES[family](rng, difficulty)
        num_draws += 1
        if num_draws > _MAX_DRAWS_WITHOUT_ITEM:
            raise UserError(
                f"--count {count}: {family} has only about {len(items)} different items of "
                f"difficulty {difficulty}; lower it"
            )
        if item is None or split_of(item) != split:
            continue
        if item.values in values and num_draws <= _MAX_DRAWS_WITHOUT_VALUES:
            continue
        key = (item.question, item.rule, item.contrary_rule)
        if key not in items:
            items[key] = item
            values.add(item.values)
            num_draws = 0
    return list(items.values())


def split_of(item: Item) -> Split:
    """Return the split that an item belongs to by its values."""
    digest = hashlib.sha256(repr((item.family, item.values)).encode()).digest()
    return "train" if digest[0] % 2 == 0 else "test"
