"""Seeded orders: which items of a set belong to an epoch, and how they are shuffled."""

import numpy as np


def shuffle_in_place(array: np.ndarray, *key: int) -> None:
    """Shuffle an array; the same key always gives the same order."""
    # The generator is named: NumPy may give `default_rng` another one in a later version.
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    generator.shuffle(array)


def weighted_subset(
    num_items: int, weight: float, seed: int, epoch: int, set_index: int
) -> np.ndarray:
    """Return the indices of the items that a set with this weight gives to an epoch, int64.

    Weight w gives w times the set: whole copies, and for the fraction a window that moves on from
    epoch to epoch over an endless repetition of the set, so that 1 / w epochs show each item once.
    `num_items` is the size of the set, `set_index` its position in the mix.
    """
    if not num_items:
        return np.zeros(0, np.int64)
    # The window of this epoch within the endless repetition of the set.
    start = round(epoch * weight * num_items)
    stop = round((epoch + 1) * weight * num_items)
    parts = [np.zeros(0, np.int64)]
    for repetition in range(start // num_items, -(-stop // num_items)):
        order = np.arange(num_items, dtype=np.int64)
        if not float(weight).is_integer():
            # Shuffled, because the part of a set that lies first on the disk may be unlike the
            # rest. Other keys than those of the plans, which end with 0 and 1.
            shuffle_in_place(order, seed, repetition, 2 + set_index)
        low = max(start - repetition * num_items, 0)
        high = min(stop - repetition * num_items, num_items)
        parts.append(order[low:high])
    return np.concatenate(parts)
