"""Which tokens stand in which row of which step: a pure function of the shard sets, weights, seed and row length.

The contract. All sequences of all mixed sets of an epoch are put in one seeded random order and written one after
another; the stream is cut into rows of `length` + 1 tokens that overlap by one (each token but the first is a target
once), and the rows are put in a second seeded order, so that the rows of a long document do not follow one another.
Nothing is dropped: the last row of an epoch is filled up with the epoch's first tokens. Step s takes the next
`rows_per_step` rows of the epochs written one after another. So an order of data needs no state but the step: it is the
same for any number of processes and after any resume.

A set with weight w contributes w times its sequences to each epoch: whole copies, and of the fraction a part that moves
on from epoch to epoch, so that over 1 / w epochs each sequence is seen once.

An epoch's plan is built once into a folder of arrays and memory-mapped from then on.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, check_manifest, exclusive_lock, read_json
from data.batching.shuffle import shuffle_in_place, weighted_subset
from data.shards import Sequences


@dataclass(frozen=True)
class Mixture:
    """Sequences of several sets with the weight of each (1.0: each sequence once an epoch)."""

    sequence_sets: tuple[Sequences, ...]
    weights: tuple[float, ...]


class TextPlan:
    """Rows of all epochs of a mixture. Epochs are built when they are first asked for, under `folder`."""

    def __init__(self, mixture: Mixture, *, seed: int, length: int, folder: Path) -> None:
        self._mixture, self._seed, self.length, self._folder = mixture, seed, length, folder
        self._set_lengths = [part.lengths() for part in mixture.sequence_sets]
        self._epoch_starts = [0]
        self._open_epoch: tuple[int, list[np.ndarray]] | None = None

    @property
    def tokens_per_epoch(self) -> int:
        """Tokens of one epoch, on average where weights are fractions."""
        return int(
            sum(
                w * part.num_tokens
                for w, part in zip(self._mixture.weights, self._mixture.sequence_sets, strict=True)
            )
        )

    def epoch_of(self, row: int) -> int:
        """The epoch, counted from zero, that the `row`-th row since the start belongs to."""
        while self._epoch_starts[-1] <= row:
            epoch = len(self._epoch_starts) - 1
            self._epoch_starts.append(self._epoch_starts[-1] + len(self._load_epoch(epoch)[2]))
        return int(np.searchsorted(self._epoch_starts, row, side="right")) - 1

    def row(self, row_number: int) -> np.ndarray:
        """The `length` + 1 ids of the `row_number`-th row since the start, int64."""
        epoch = self.epoch_of(row_number)
        order, ends, rows = self._load_epoch(epoch)
        start = int(rows[row_number - self._epoch_starts[epoch]]) * self.length
        ids = self._read_stream(order, ends, start, min(start + self.length + 1, int(ends[-1])))
        while len(ids) <= self.length:
            # The end of an epoch: its first tokens fill the row (again and again if it is shorter than a row).
            ids = np.concatenate(
                [
                    ids,
                    self._read_stream(
                        order, ends, 0, min(self.length + 1 - len(ids), int(ends[-1]))
                    ),
                ]
            )
        return ids

    def _read_stream(
        self, order: np.ndarray, ends: np.ndarray, start: int, stop: int
    ) -> np.ndarray:
        pieces = []
        index = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            begin = int(ends[index - 1]) if index else 0
            piece_stop = min(stop, int(ends[index]))
            set_index, sequence = divmod(int(order[index]), 1 << 48)
            pieces.append(
                self._mixture.sequence_sets[set_index].tokens(
                    sequence, start - begin, piece_stop - begin
                )
            )
            start, index = piece_stop, index + 1
        return np.concatenate(pieces).astype(np.int64)

    def _load_epoch(self, epoch: int) -> list[np.ndarray]:
        if self._open_epoch is None or self._open_epoch[0] != epoch:
            folder = self._folder / f"epoch-{epoch:05d}"
            with exclusive_lock(
                self._folder.with_suffix(".lock")
            ):  # of the processes that train together one builds it
                # An epoch's plan follows from the run's fingerprints, so one that is whole is the right one.
                if (
                    not (folder / MANIFEST).is_file()
                    or check_manifest(folder)
                    or self._is_stale(folder)
                ):
                    self._build_epoch(epoch, folder)
                arrays = [
                    np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
                    for name in ("order", "ends", "rows")
                ]
            self._open_epoch = epoch, arrays
        return self._open_epoch[1]

    def _manifest_fields(self) -> dict[str, object]:
        return {
            "seed": self._seed,
            "length": self.length,
            "weights": list(self._mixture.weights),
            "tokens": [part.num_tokens for part in self._mixture.sequence_sets],
        }

    def _is_stale(self, folder: Path) -> bool:
        manifest = read_json(folder / MANIFEST)
        return any(manifest.get(key) != value for key, value in self._manifest_fields().items())

    def _build_epoch(self, epoch: int, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder, self._manifest_fields()) as output:
            order = np.concatenate(
                [
                    (np.int64(part) << 48)
                    | weighted_subset(len(set_lengths), weight, self._seed, epoch, part)
                    for part, (set_lengths, weight) in enumerate(
                        zip(self._set_lengths, self._mixture.weights, strict=True)
                    )
                ]
            )
            shuffle_in_place(order, self._seed, epoch, 0)
            lengths = np.empty(len(order), np.int64)
            for part, set_lengths in enumerate(self._set_lengths):
                in_set = order >> 48 == part
                lengths[in_set] = set_lengths[order[in_set] & ((1 << 48) - 1)]
            if not len(order):
                raise UserError(
                    f"the weights of the data leave epoch {epoch} without a single document: raise them"
                )
            ends = np.cumsum(lengths)
            # Positions 1 … N - 1 are targets once each; a single token has none and still makes a row.
            rows = np.arange(max(1, -(-(int(ends[-1]) - 1) // self.length)), dtype=np.int64)
            shuffle_in_place(rows, self._seed, epoch, 1)
            for name, array in (("order", order), ("ends", ends), ("rows", rows)):
                np.save(output / f"{name}.npy", array, allow_pickle=False)
