"""Fine-tuning rows: several whole examples in each, packed by best fit.

The examples of all mixed sets of an epoch are put in one seeded random order. Stretches of
`PACKING_WINDOW` of them are packed into rows, the longest example first and each into the fullest
row that still takes it. The rows are shuffled, and read as `data.batching.epoch_plan` describes.
"""

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from data.batching.epoch_plan import EpochPlan, pack_item, unpack_item
from data.batching.examples import PackableExamples
from data.batching.shuffle import shuffle_in_place, weighted_subset

# Examples that are packed together: enough to fill rows well, few enough to keep the order random.
PACKING_WINDOW = 4096


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into rows of at most `capacity` positions, the longest item first.

    Each item goes into the row with the least free space that takes it (best-fit decreasing).
    Return the rows as lists of indices into `lengths`.
    """
    rows: list[list[int]] = []
    # (free positions, row) of each row that is not full, sorted: the first row that takes an item
    # fits best.
    open_rows: list[tuple[int, int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        # -1 sorts before all rows with exactly this much free space.
        best = bisect.bisect_left(open_rows, (length, -1))
        if best == len(open_rows):
            free_positions, row = capacity, len(rows)
            rows.append([])
        else:
            free_positions, row = open_rows.pop(best)
        rows[row].append(index)
        if free_positions > length:
            bisect.insort(open_rows, (free_positions - length, row))
    return rows


class PackedPlan(EpochPlan):
    """The rows of a mix of examples.

    The arrays of an epoch: `order`, the examples in the order of the rows; `starts`, the index in
    `order` of each row's first example, and the number of examples at the end; `tokens`, a single
    number, the positions of all examples together.
    """

    array_names = ("order", "starts", "tokens")

    def __init__(
        self,
        example_sets: Sequence[PackableExamples],
        weights: tuple[float, ...],
        *,
        seed: int,
        length: int,
        folder: Path,
        identity: str = "",
    ) -> None:
        """Plan rows of `length` positions from several sets of examples, mixed by their weights.

        Epochs are built when they are first used, and stored in `folder`. `identity` names what the
        examples depend on, such as the data and the chat template: a stored epoch is used again
        only if seed, length, weights and `identity` are the same as when it was stored.
        """
        super().__init__(seed=seed, length=length, folder=folder)
        self._example_sets = example_sets
        self._weights = weights
        self._example_identity = identity

    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""
        _order, starts, _tokens = self._load_epoch(epoch)
        # `starts` has one entry more than rows.
        return len(starts) - 1

    def num_tokens(self, epoch: int) -> int:
        """Return the number of positions of all examples of an epoch, without padding."""
        _order, _starts, tokens = self._load_epoch(epoch)
        return int(tokens[0])

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows make, with a fraction for a part."""
        # Not one row more: a run that ends with an epoch need not build the one after it.
        self._build_through(num_rows)
        return float(np.interp(num_rows, self._first_rows, np.arange(len(self._first_rows))))

    def row(self, row_number: int) -> list[Any]:
        """Return the examples of row `row_number`.

        Rows are numbered across epochs, from the start of the run.
        """
        epoch, row_in_epoch = self._locate(row_number)
        order, starts, _tokens = self._load_epoch(epoch)
        start, stop = starts[row_in_epoch : row_in_epoch + 2]
        items = (unpack_item(int(item)) for item in order[start:stop])
        return [self._example_sets[set_index].example(index, epoch) for set_index, index in items]

    def _identity(self) -> dict[str, object]:
        """Return everything that an epoch depends on."""
        return {"identity": f"{self._example_identity} {self._seed} {self.length} {self._weights}"}

    def _build_arrays(self, epoch: int) -> list[np.ndarray]:
        """Select, shuffle and pack the examples of an epoch; return its arrays.

        Raises UserError if there is nothing to pack.
        """
        items, sizes = self._select_examples(epoch)
        if not len(items):
            raise UserError(
                f"no example of epoch {epoch} fits a row of {self.length} tokens, or the weights "
                "leave none: raise --sequence_length or the weights"
            )
        # The same shuffle for both arrays: they have one length and one key. The last number tells
        # it from that of the rows below.
        shuffle_in_place(items, self._seed, epoch, 0)
        shuffle_in_place(sizes, self._seed, epoch, 0)
        # The number of examples of each row. Arrays, not lists of lists: millions of Python numbers
        # would be most of a run's memory.
        row_sizes_by_window = []
        for start in range(0, len(items), PACKING_WINDOW):
            window = slice(start, start + PACKING_WINDOW)
            rows = self._pack(sizes[window])
            items[window] = items[window][np.concatenate(rows)]
            row_sizes_by_window.append(np.array([len(row) for row in rows], dtype=np.int32))
        num_tokens = sizes.sum(dtype=np.int64)
        # Large for millions of examples, and not needed any more.
        del sizes
        row_sizes = np.concatenate(row_sizes_by_window)
        row_order = np.arange(len(row_sizes))
        shuffle_in_place(row_order, self._seed, epoch, 1)
        order, starts = _reorder_rows(items, row_sizes, row_order)
        return [order, starts, np.array([num_tokens])]

    def _pack(self, sizes: np.ndarray) -> list[list[int]]:
        """Return the indices of the examples of each row, from the length of each example."""
        return pack_best_fit(sizes, self.length)

    def _select_examples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of an epoch that fit a row, int64[n], and their lengths, int32[n]."""
        items, sizes = [], []
        for set_index, examples in enumerate(self._example_sets):
            lengths = examples.lengths(epoch).astype(np.int32)
            subset = weighted_subset(
                len(lengths), self._weights[set_index], self._seed, epoch, set_index
            )
            # Length 0 means that the example is left out because it does not fit.
            subset = subset[lengths[subset] > 0]
            sizes.append(lengths[subset])
            items.append(pack_item(set_index, subset))
        return np.concatenate(items), np.concatenate(sizes)


def _reorder_rows(
    items: np.ndarray, row_sizes: np.ndarray, row_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of consecutive rows with the rows reordered, and where each row starts.

    items[n], row_sizes[rows], row_order[rows] → reordered items[n], starts[rows + 1]. New row i is
    old row `row_order[i]`.
    """
    old_starts = np.cumsum(row_sizes) - row_sizes
    new_sizes = row_sizes[row_order]
    starts = np.concatenate([[0], np.cumsum(new_sizes)])
    # How far the items of each new row lie from their old indices.
    shifts = old_starts[row_order] - starts[:-1]
    reordered = np.empty_like(items)
    # Some rows at a time, so that the index of each item takes memory for these alone.
    for first_row in range(0, len(row_order), PACKING_WINDOW):
        rows = slice(first_row, min(first_row + PACKING_WINDOW, len(row_order)))
        start, stop = starts[rows.start], starts[rows.stop]
        indices = np.arange(start, stop) + np.repeat(shifts[rows], new_sizes[rows])
        reordered[start:stop] = items[indices]
    return reordered, starts
