"""Seeded orders: which items of a set belong to an epoch, and in which order they come."""

import numpy as np


def shuffle(array: np.ndarray, *key: int) -> None:
    """Shuffle in place; the same key always gives the same order."""
    np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).shuffle(array)


def share(count: int, weight: float, seed: int, epoch: int, part: int) -> np.ndarray:
    """The items, of `count`, that a set with this weight gives to an epoch, int64.

    Weight w gives w times the set: whole copies, and of the fraction a window that moves on from epoch to epoch over
    an endless repetition of the set, so that over 1 / w epochs each item comes once. `part` is the set's place in the mix.
    """
    if not count:
        return np.zeros(0, np.int64)
    start, stop = round(epoch * weight * count), round((epoch + 1) * weight * count)
    pieces = []
    for turn in range(start // count, -(-stop // count)):
        order = np.arange(count, dtype=np.int64)
        if not float(weight).is_integer():
            # Which part of a set comes first must not be how it lies on the disk.
            shuffle(order, seed, turn, 2 + part)
        pieces.append(order[max(start - turn * count, 0) : min(stop - turn * count, count)])
    return np.concatenate(pieces or [np.zeros(0, np.int64)])
