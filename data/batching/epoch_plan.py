"""The order of data: the rows of a step are a function of shard sets, weights, seed and step.

All items of all mixed sets of an epoch are put in one seeded random order. A subclass cuts or packs
them into rows, which get a second seeded order. Step s reads the next `rows_per_step` rows of the
epochs, one epoch after the other. So the order needs no state except the step: it is the same after
any resume and for any number of processes.

The plan of an epoch is built once, into a folder of arrays, and memory-mapped from then on.
"""

import abc
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np

from common.files import MANIFEST, atomic_folder, check_manifest, read_json
from common.locks import exclusive_lock

# An item of a plan is one int64: the lower 48 bits are its index within its set, the bits above are
# the index of the set.
_INDEX_BITS = 48


def pack_item(set_index: int, indices: np.ndarray) -> np.ndarray:
    """Return each item of a set as one number that holds the set's index and its own, int64[n]."""
    return (np.int64(set_index) << _INDEX_BITS) | indices


def unpack_item(item: int) -> tuple[int, int]:
    """Return the index of an item's set, and the item's index within the set."""
    return divmod(item, 1 << _INDEX_BITS)


class EpochPlan(abc.ABC):
    """Rows of all epochs. An epoch is built when it is first used, in a folder below `folder`."""

    # The arrays of an epoch, one file each.
    array_names: ClassVar[tuple[str, ...]]

    def __init__(self, *, seed: int, length: int, folder: Path) -> None:
        """Plan rows of `length` positions; nothing is built yet."""
        self.length = length
        self._seed = seed
        self._folder = folder
        # First row of each epoch whose size is known, and of the one after them.
        self._first_rows = [0]
        # The epoch that was read last, and its arrays.
        self._open_epoch: tuple[int, list[np.ndarray]] | None = None

    @abc.abstractmethod
    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""

    @abc.abstractmethod
    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows make."""

    @abc.abstractmethod
    def _identity(self) -> dict[str, object]:
        """Return everything that an epoch depends on; the epoch's manifest records it."""

    @abc.abstractmethod
    def _build_arrays(self, epoch: int) -> list[np.ndarray]:
        """Return the arrays of an epoch, in the order of `array_names`."""

    def epoch_of(self, row_number: int) -> int:
        """Return the epoch, from 0, of row `row_number`; rows are numbered across epochs."""
        self._build_through(row_number + 1)
        # The last epoch whose first row is not after this one.
        return int(np.searchsorted(self._first_rows, row_number, side="right")) - 1

    def _build_through(self, num_rows: int) -> None:
        """Build epochs until they have `num_rows` rows together."""
        while self._first_rows[-1] < num_rows:
            next_epoch = len(self._first_rows) - 1
            # Counting the rows builds the epoch.
            self._first_rows.append(self._first_rows[-1] + self.num_rows(next_epoch))

    def _locate(self, row_number: int) -> tuple[int, int]:
        """Return the epoch of row `row_number`, counted across epochs, and its index in there."""
        epoch = self.epoch_of(row_number)
        return epoch, row_number - self._first_rows[epoch]

    def _load_epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the arrays of an epoch, memory-mapped; build them if they are missing or old."""
        if self._open_epoch is None or self._open_epoch[0] != epoch:
            folder = self._folder / f"epoch-{epoch:05d}"
            # Of the processes that train together, the first builds the epoch and the others wait.
            with exclusive_lock(self._folder.with_suffix(".lock")):
                if not self._is_current(folder):
                    self._build_epoch(epoch, folder)
                arrays = [
                    np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in self.array_names
                ]
            self._open_epoch = epoch, arrays
        return self._open_epoch[1]

    def _is_current(self, folder: Path) -> bool:
        """Return whether a folder holds a whole epoch that depends on the same as this plan's."""
        if not (folder / MANIFEST).is_file() or check_manifest(folder):
            return False
        manifest = read_json(folder / MANIFEST)
        return all(manifest.get(key) == value for key, value in self._identity().items())

    def _build_epoch(self, epoch: int, folder: Path) -> None:
        """Build the arrays of an epoch and write them into `folder`, which is replaced."""
        shutil.rmtree(folder, ignore_errors=True)
        arrays = self._build_arrays(epoch)
        with atomic_folder(folder, self._identity()) as output:
            for name, array in zip(self.array_names, arrays, strict=True):
                np.save(output / f"{name}.npy", array, allow_pickle=False)
