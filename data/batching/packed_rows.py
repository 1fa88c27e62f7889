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
from common.files import MANIFEST, atomic_folder, locked, manifest_problem, read_json
from data.batching.examples import Examples
from data.batching.shuffle import share, shuffle

# Examples packed together: enough to fill rows well, few enough to keep the order random.
WINDOW = 4096


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of at most `capacity` positions, as lists of indices into `lengths` (best fit, longest first)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what each open row has left, and which it is, sorted
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        place = bisect.bisect_left(room, (length, -1))
        if place == len(room):
            left, row = capacity, len(rows)
            rows.append([])
        else:
            left, row = room.pop(place)
        rows[row].append(index)
        if left > length:
            bisect.insort(room, (left - length, row))
    return rows


class PackedPlan:
    """Rows of all epochs of a mix of examples. Epochs are built when they are first asked for, under `folder`."""

    def __init__(
        self, parts: list[Examples], weights: tuple[float, ...], *, seed: int, length: int, folder: Path, identity: str = ""
    ) -> None:
        """`identity` changes with anything else the examples depend on: an epoch's plan of another one is built anew."""
        self._parts, self._weights, self._seed, self.length, self._folder = parts, weights, seed, length, folder
        self._identity = identity
        self._first_rows = [0]
        self._open: tuple[int, list[np.ndarray]] | None = None

    def rows_in(self, epoch: int) -> int:
        """Rows of an epoch."""
        return len(self._epoch(epoch)[1]) - 1

    def tokens_in(self, epoch: int) -> int:
        """Positions of all examples of an epoch."""
        return int(self._epoch(epoch)[2][0])

    def epoch_of(self, row: int) -> int:
        """The epoch, counted from zero, that the `row`-th row since the start belongs to."""
        while self._first_rows[-1] <= row:
            self._first_rows.append(self._first_rows[-1] + self.rows_in(len(self._first_rows) - 1))
        return int(np.searchsorted(self._first_rows, row, side="right")) - 1

    def progress(self, row: int) -> float:
        """Epochs that are over when `row` rows have been read."""
        # The epoch after the last one is not built to say that it has not begun.
        while self._first_rows[-1] < row:
            self._first_rows.append(self._first_rows[-1] + self.rows_in(len(self._first_rows) - 1))
        return float(np.interp(row, self._first_rows, np.arange(len(self._first_rows))))

    def row(self, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """The examples (ids and scored, see `Examples`) of the `row`-th row since the start."""
        epoch = self.epoch_of(row)
        order, starts, _ = self._epoch(epoch)
        start, stop = starts[row - self._first_rows[epoch] :][:2]
        places = (divmod(int(item), 1 << 48) for item in order[start:stop])
        return [self._parts[part].example(index, epoch) for part, index in places]

    def _epoch(self, epoch: int) -> list[np.ndarray]:
        if self._open is None or self._open[0] != epoch:
            folder = self._folder / f"epoch-{epoch:05d}"
            with locked(self._folder.with_suffix(".lock")):  # of the processes that train together one builds it
                whole = (folder / MANIFEST).is_file() and manifest_problem(folder) is None
                if not whole or read_json(folder / MANIFEST).get("identity") != self._facts()["identity"]:
                    self._build(epoch, folder)
                names = ("order", "starts", "tokens")
                arrays = [np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names]
            self._open = epoch, arrays
        return self._open[1]

    def _facts(self) -> dict[str, object]:
        return {"identity": f"{self._identity} {self._seed} {self.length} {self._weights}"}

    def _build(self, epoch: int, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        order, lengths = [], []
        for number, (part, weight) in enumerate(zip(self._parts, self._weights, strict=True)):
            known = part.lengths(epoch)
            mine = share(len(known), weight, self._seed, epoch, number)
            mine = mine[known[mine] > 0]
            order.append((np.int64(number) << 48) | mine)
            lengths.append(known[mine])
        items, sizes = np.concatenate(order), np.concatenate(lengths)
        if not len(items):
            raise UserError(f"no example of epoch {epoch} fits a row of {self.length} tokens, or the weights leave none: "
                            "raise --sequence_length or the weights")
        turn = np.arange(len(items))
        shuffle(turn, self._seed, epoch, 0)
        # Arrays, not lists of lists: millions of Python numbers would be most of a run's memory.
        packed, counts = [], []
        for start in range(0, len(turn), WINDOW):
            rows = pack(sizes[turn[start : start + WINDOW]], self.length)
            packed.append(start + np.concatenate(rows))
            counts.append(np.array([len(row) for row in rows]))
        places, held = np.concatenate(packed), np.concatenate(counts)
        sequence = np.arange(len(held))
        shuffle(sequence, self._seed, epoch, 1)
        starts = np.concatenate([[0], np.cumsum(held[sequence])])
        # Where the row that now stands at each place began before.
        moved = np.repeat((np.cumsum(held) - held)[sequence] - starts[:-1], held[sequence])
        with atomic_folder(folder, self._facts()) as made:
            np.save(made / "order.npy", items[turn[places[moved + np.arange(len(places))]]], allow_pickle=False)
            np.save(made / "starts.npy", starts, allow_pickle=False)
            np.save(made / "tokens.npy", np.array([sizes.sum()]), allow_pickle=False)
