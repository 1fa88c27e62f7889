"""Count the packed rows of fine-tuning from the number of examples of each length.

Training packs windows of examples that follow one another in a random order
(`data.batching.packed_rows`). The windows here are drawn at random from the counts, without
replacement, and packed by the same function: with up to `PACKING_WINDOW` examples there are as many
rows as in training, with more the numbers differ by the chance of another random order.
"""

import numpy as np

from data.batching.packed_rows import PACKING_WINDOW, pack_best_fit

# Of more examples than this many windows have, about a million, a random part is packed, and the
# number of rows is that of the part, scaled.
MAX_WINDOWS = 256


def count_packed_rows(examples_by_length: np.ndarray, capacity: int) -> int:
    """Return the number of rows of `capacity` positions that the examples are packed into.

    `examples_by_length[i]` is the number of examples of i positions, int64[capacity + 1]; number 0
    counts the examples that are left out, and is ignored.
    """
    generator = np.random.Generator(np.random.Philox(0))
    lengths = 1 + np.flatnonzero(examples_by_length[1:])
    remaining = examples_by_length[lengths]
    num_examples = int(remaining.sum())
    if num_examples > MAX_WINDOWS * PACKING_WINDOW:
        # With replacement, which makes no difference to a small part of many.
        windows = generator.multinomial(PACKING_WINDOW, remaining / num_examples, size=MAX_WINDOWS)
        num_rows = sum(_pack(lengths, window, capacity) for window in windows)
        return round(num_rows * num_examples / (MAX_WINDOWS * PACKING_WINDOW))
    num_rows = 0
    for _ in range(num_examples // PACKING_WINDOW):
        window = generator.multivariate_hypergeometric(
            remaining, PACKING_WINDOW, method="marginals"
        )
        num_rows += _pack(lengths, window, capacity)
        remaining = remaining - window
    return num_rows + _pack(lengths, remaining, capacity)


def _pack(lengths: np.ndarray, counts: np.ndarray, capacity: int) -> int:
    """Return the number of rows of one window that has `counts[i]` examples of `lengths[i]`."""
    return len(pack_best_fit(np.repeat(lengths, counts), capacity))
