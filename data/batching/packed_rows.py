"""Fine-tuning rows: several whole examples in each, packed by best fit.

The examples of all mixed sets of an epoch are put in one seeded random order. Stretches of
`PACKING_WINDOW` of them are packed into rows, the longest example first and each into the fullest
row that still takes it. The rows are shuffled, and read as `data.batching.epoch_plan` describes.
"""

import bisect
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.batching.epoch_plan import EpochPlan, pack_item, unpack_item
from data.batching.examples import Example, Examples
from data.batching.shuffle import shuffle_in_place, weighted_subset

# Examples that are packed together: enough to fill rows well, few enough to keep the order random.
PACKING_WINDOW = 4096


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Pack items into rows of at most `capacity` positions, best fit with the longest first.

    Return the rows as lists of indices into `lengths`.
    """
    rows: list[list[int]] = []
    # Free positions and number of each row that is not full, sorted: the first that takes an item
    # fits best.
    free_rows: list[tuple[int, int]] = []
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect.bisect_left(free_rows, (length, -1))
        if place == len(free_rows):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = free_rows.pop(place)
        rows[row].append(index)
        if free > length:
            bisect.insort(free_rows, (free - length, row))
    return rows


class PackedPlan(EpochPlan):
    """The rows of a mix of examples.

    The arrays of an epoch: `order`, the examples in the order of the rows; `starts`, the first
    example of each row, and the number of examples; `tokens`, the positions of all examples
    together.
    """

    array_names = ("order", "starts", "tokens")

    def __init__(
        self,
        example_sets: list[Examples],
        weights: tuple[float, ...],
        *,
        seed: int,
        length: int,
        folder: Path,
        identity: str = "",
    ) -> None:
        """`identity` stands for all else that the examples depend on, such as the template."""
        super().__init__(seed=seed, length=length, folder=folder)
        self._example_sets = example_sets
        self._weights = weights
        self._example_identity = identity

    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""
        return len(self._load_epoch(epoch)[1]) - 1

    def num_tokens(self, epoch: int) -> int:
        """Return the positions of all examples of an epoch."""
        return int(self._load_epoch(epoch)[2][0])

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows are."""
        # A run that ends with an epoch does not build the one after it.
        self._build_through(num_rows)
        return float(np.interp(num_rows, self._first_rows, np.arange(len(self._first_rows))))

    def row(self, row_number: int) -> list[Example]:
        """Return the examples of a row, counted from the start of the run."""
        epoch, row = self._locate(row_number)
        order, starts, _ = self._load_epoch(epoch)
        start, stop = starts[row : row + 2]
        items = (unpack_item(int(item)) for item in order[start:stop])
        return [self._example_sets[set_index].example(index, epoch) for set_index, index in items]

    def _identity(self) -> dict[str, object]:
        return {"identity": f"{self._example_identity} {self._seed} {self.length} {self._weights}"}

    def _build_arrays(self, epoch: int) -> list[np.ndarray]:
        items, sizes = self._select_examples(epoch)
        if not len(items):
            raise UserError(
                f"no example of epoch {epoch} fits a row of {self.length} tokens, or the weights "
                "leave none: raise --sequence_length or the weights"
            )
        permutation = np.arange(len(items))
        shuffle_in_place(permutation, self._seed, epoch, 0)
        # Arrays, not lists of lists: millions of Python numbers would be most of a run's memory.
        packed, counts = [], []
        for start in range(0, len(permutation), PACKING_WINDOW):
            rows = pack_best_fit(sizes[permutation[start : start + PACKING_WINDOW]], self.length)
            packed.append(start + np.concatenate(rows))
            counts.append(np.array([len(row) for row in rows]))
        packed_items = items[permutation[np.concatenate(packed)]]
        row_sizes = np.concatenate(counts)
        row_order = np.arange(len(row_sizes))
        shuffle_in_place(row_order, self._seed, epoch, 1)
        order, starts = _reorder_rows(packed_items, row_sizes, row_order)
        return [order, starts, np.array([sizes.sum()])]

    def _select_examples(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the items of an epoch that fit a row, and their positions, int64[n] each."""
        items, sizes = [], []
        for set_index, examples in enumerate(self._example_sets):
            lengths = examples.lengths(epoch)
            subset = weighted_subset(
                len(lengths), self._weights[set_index], self._seed, epoch, set_index
            )
            subset = subset[lengths[subset] > 0]
            items.append(pack_item(set_index, subset))
            sizes.append(lengths[subset])
        return np.concatenate(items), np.concatenate(sizes)


def _reorder_rows(
    items: np.ndarray, row_sizes: np.ndarray, row_order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items of consecutive rows with the rows reordered, and where each row starts.

    items[n], row_sizes[rows], row_order[rows] → order[n], starts[rows + 1].
    """
    old_starts = np.cumsum(row_sizes) - row_sizes
    new_sizes = row_sizes[row_order]
    starts = np.concatenate([[0], np.cumsum(new_sizes)])
    # How far each item of the new order moves.
    shifts = np.repeat(old_starts[row_order] - starts[:-1], new_sizes)
    return items[np.arange(len(items)) + shifts], starts
