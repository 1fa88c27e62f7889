"""Seeded orders: which items of a set belong to an epoch, and in which order they come."""

import numpy as np


def shuffle_in_place(array: np.ndarray, *key: int) -> None:
    """Shuffle in place; the same key always gives the same order."""
    np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).shuffle(array)


def weighted_subset(
    num_items: int, weight: float, seed: int, epoch: int, set_index: int
) -> np.ndarray:
    """The items, of `num_items`, that a set with this weight gives to an epoch, int64.

    Weight w gives w times the set: whole copies, and of the fraction a window that moves on from epoch to epoch over
    an endless repetition of the set, so that over 1 / w epochs each item comes once. `set_index` is the set's place in the mix.
    """
    if not num_items:
        return np.zeros(0, np.int64)
    start, stop = round(epoch * weight * num_items), round((epoch + 1) * weight * num_items)
    pieces = []
    for repetition in range(start // num_items, -(-stop // num_items)):
        order = np.arange(num_items, dtype=np.int64)
        if not float(weight).is_integer():
            # Which part of a set comes first must not be how it lies on the disk.
            shuffle_in_place(order, seed, repetition, 2 + set_index)
        pieces.append(
            order[
                max(start - repetition * num_items, 0) : min(
                    stop - repetition * num_items, num_items
                )
            ]
        )
    return np.concatenate(pieces or [np.zeros(0, np.int64)])
