"""Several examples to a row: which ones, as a pure function of the sets, weights, seed and row length.

The contract is that of `data.batching.text_rows`, for examples that must stay whole: the examples of all mixed sets of an epoch are put
in one seeded random order; stretches of `WINDOW` of them are packed into rows, the longest first and each into the
fullest row that still takes it; the rows are put in a second seeded order. Step s takes the next `rows_per_step` rows
of the epochs written one after another. An epoch's plan is built once into a folder and memory-mapped.
"""

import bisect
import shutil
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, check_manifest, exclusive_lock, read_json
from data.batching.examples import Examples
from data.batching.shuffle import shuffle_in_place, weighted_subset

# Examples packed together: enough to fill rows well, few enough to keep the order random.
PACKING_WINDOW = 4096


def pack_best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` positions, as lists of indices into `lengths` (best fit, longest first)."""
    rows: list[list[int]] = []
    free_space: list[tuple[int, int]] = []  # what each open row has left, and which it is, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect.bisect_left(free_space, (length, -1))
        if place == len(free_space):
            free, row = capacity, len(rows)
            rows.append([])
        else:
            free, row = free_space.pop(place)
        rows[row].append(index)
        if free > length:
            bisect.insort(free_space, (free - length, row))
    return rows


class PackedPlan:
    """Rows of all epochs of a mix of examples. Epochs are built when they are first asked for, under `folder`."""

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
        """`identity` changes with anything else the examples depend on: an epoch's plan of another one is built anew."""
        self._example_sets, self._weights, self._seed, self.length, self._folder = (
            example_sets,
            weights,
            seed,
            length,
            folder,
        )
        self._identity = identity
        self._epoch_starts = [0]
        self._open_epoch: tuple[int, list[np.ndarray]] | None = None

    def num_rows(self, epoch: int) -> int:
        """Rows of an epoch."""
        return len(self._load_epoch(epoch)[1]) - 1

    def num_tokens(self, epoch: int) -> int:
        """Positions of all examples of an epoch."""
        return int(self._load_epoch(epoch)[2][0])

    def epoch_of(self, row: int) -> int:
        """The epoch, counted from zero, that the `row`-th row since the start belongs to."""
        while self._epoch_starts[-1] <= row:
            self._epoch_starts.append(
                self._epoch_starts[-1] + self.num_rows(len(self._epoch_starts) - 1)
            )
        return int(np.searchsorted(self._epoch_starts, row, side="right")) - 1

    def epochs_completed(self, row: int) -> float:
        """Epochs that are over when `row` rows have been read."""
        # The epoch after the last one is not built to say that it has not begun.
        while self._epoch_starts[-1] < row:
            self._epoch_starts.append(
                self._epoch_starts[-1] + self.num_rows(len(self._epoch_starts) - 1)
            )
        return float(np.interp(row, self._epoch_starts, np.arange(len(self._epoch_starts))))

    def row(self, row_number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The examples (ids and scored, see `Examples`) of the `row_number`-th row since the start."""
        epoch = self.epoch_of(row_number)
        order, starts, _ = self._load_epoch(epoch)
        start, stop = starts[row_number - self._epoch_starts[epoch] :][:2]
        places = (divmod(int(item), 1 << 48) for item in order[start:stop])
        return [self._example_sets[part].example(index, epoch) for part, index in places]

    def _load_epoch(self, epoch: int) -> list[np.ndarray]:
        if self._open_epoch is None or self._open_epoch[0] != epoch:
            folder = self._folder / f"epoch-{epoch:05d}"
            with exclusive_lock(
                self._folder.with_suffix(".lock")
            ):  # of the processes that train together one builds it
                whole = (folder / MANIFEST).is_file() and check_manifest(folder) is None
                if (
                    not whole
                    or read_json(folder / MANIFEST).get("identity")
                    != self._manifest_fields()["identity"]
                ):
                    self._build_epoch(epoch, folder)
                names = ("order", "starts", "tokens")
                arrays = [
                    np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in names
                ]
            self._open_epoch = epoch, arrays
        return self._open_epoch[1]

    def _manifest_fields(self) -> dict[str, object]:
        return {"identity": f"{self._identity} {self._seed} {self.length} {self._weights}"}

    def _build_epoch(self, epoch: int, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        order, lengths = [], []
        for number, (part, weight) in enumerate(
            zip(self._example_sets, self._weights, strict=True)
        ):
            set_lengths = part.lengths(epoch)
            subset = weighted_subset(len(set_lengths), weight, self._seed, epoch, number)
            subset = subset[set_lengths[subset] > 0]
            order.append((np.int64(number) << 48) | subset)
            lengths.append(set_lengths[subset])
        items, sizes = np.concatenate(order), np.concatenate(lengths)
        if not len(items):
            raise UserError(
                f"no example of epoch {epoch} fits a row of {self.length} tokens, or the weights leave none: "
                "raise --sequence_length or the weights"
            )
        permutation = np.arange(len(items))
        shuffle_in_place(permutation, self._seed, epoch, 0)
        # Arrays, not lists of lists: millions of Python numbers would be most of a run's memory.
        packed, counts = [], []
        for start in range(0, len(permutation), PACKING_WINDOW):
            rows = pack_best_fit(sizes[permutation[start : start + PACKING_WINDOW]], self.length)
            packed.append(start + np.concatenate(rows))
            counts.append(np.array([len(row) for row in rows]))
        places, row_sizes = np.concatenate(packed), np.concatenate(counts)
        row_order = np.arange(len(row_sizes))
        shuffle_in_place(row_order, self._seed, epoch, 1)
        starts = np.concatenate([[0], np.cumsum(row_sizes[row_order])])
        # Where the row that now stands at each place began before.
        source_shifts = np.repeat(
            (np.cumsum(row_sizes) - row_sizes)[row_order] - starts[:-1], row_sizes[row_order]
        )
        with atomic_folder(folder, self._manifest_fields()) as output:
            np.save(
                output / "order.npy",
                items[permutation[places[source_shifts + np.arange(len(places))]]],
                allow_pickle=False,
            )
            np.save(output / "starts.npy", starts, allow_pickle=False)
            np.save(output / "tokens.npy", np.array([sizes.sum()]), allow_pickle=False)
