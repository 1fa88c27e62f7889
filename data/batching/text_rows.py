"""Pretraining rows: the stream of all documents of an epoch, cut at the row length.

All sequences of all mixed sets of an epoch are put in one seeded random order and concatenated. The
stream is cut into rows of `length` + 1 tokens that overlap by one, so that each token but the first
is a target once. The rows are shuffled too: those of a long document do not follow one another.
Nothing is dropped: the first tokens of the epoch fill up its last row.

A set with weight w gives w times its sequences to each epoch: whole copies, and for the fraction a
part that moves on from epoch to epoch, so that 1 / w epochs show each sequence once.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from data.batching.epoch_plan import EpochPlan, pack_item, unpack_item
from data.batching.shuffle import shuffle_in_place, weighted_subset
from data.sequences import Sequences


@dataclass(frozen=True)
class Mixture:
    """Sequences of several sets with the weight of each (1.0: each sequence once an epoch)."""

    sequence_sets: tuple[Sequences, ...]
    weights: tuple[float, ...]


class TextPlan(EpochPlan):
    """The rows of a mixture of text.

    The arrays of an epoch: `order`, the sequences in their order; `ends`, the end of each in the
    stream; `rows`, the number of each row within the stream.
    """

    array_names = ("order", "ends", "rows")

    def __init__(self, mixture: Mixture, *, seed: int, length: int, folder: Path) -> None:
        super().__init__(seed=seed, length=length, folder=folder)
        self._mixture = mixture
        self._set_lengths = [sequences.lengths() for sequences in mixture.sequence_sets]

    @property
    def tokens_per_epoch(self) -> int:
        """Return the tokens of one epoch, on average if weights are fractions."""
        pairs = zip(self._mixture.weights, self._mixture.sequence_sets, strict=True)
        return int(sum(weight * sequences.num_tokens for weight, sequences in pairs))

    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""
        return len(self._load_epoch(epoch)[2])

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows are, by their tokens."""
        return num_rows * self.length / self.tokens_per_epoch

    def row(self, row_number: int) -> np.ndarray:
        """Return the `length` + 1 ids of a row, counted from the start of the run, int64."""
        epoch, row = self._locate(row_number)
        order, ends, rows = self._load_epoch(epoch)
        num_tokens = int(ends[-1])
        start = int(rows[row]) * self.length
        ids = self._read_stream(order, ends, start, min(start + self.length + 1, num_tokens))
        while len(ids) <= self.length:
            # The last row of an epoch: more than once around if the epoch is shorter than a row.
            missing = self.length + 1 - len(ids)
            padding = self._read_stream(order, ends, 0, min(missing, num_tokens))
            ids = np.concatenate([ids, padding])
        return ids

    def _read_stream(
        self, order: np.ndarray, ends: np.ndarray, start: int, stop: int
    ) -> np.ndarray:
        """Return positions `[start, stop)` of the sequences in their order, int64."""
        pieces = []
        index = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            begin = int(ends[index - 1]) if index else 0
            piece_stop = min(stop, int(ends[index]))
            set_index, sequence = unpack_item(int(order[index]))
            sequences = self._mixture.sequence_sets[set_index]
            pieces.append(sequences.tokens(sequence, start - begin, piece_stop - begin))
            start, index = piece_stop, index + 1
        return np.concatenate(pieces).astype(np.int64)

    def _identity(self) -> dict[str, object]:
        return {
            "seed": self._seed,
            "length": self.length,
            "weights": list(self._mixture.weights),
            "tokens": [sequences.num_tokens for sequences in self._mixture.sequence_sets],
        }

    def _build_arrays(self, epoch: int) -> list[np.ndarray]:
        items, sizes = [], []
        sets = zip(self._set_lengths, self._mixture.weights, strict=True)
        for set_index, (lengths, weight) in enumerate(sets):
            subset = weighted_subset(len(lengths), weight, self._seed, epoch, set_index)
            items.append(pack_item(set_index, subset))
            sizes.append(lengths[subset])
        order = np.concatenate(items)
        if not len(order):
            raise UserError(
                f"the weights of the data leave epoch {epoch} without a single document: raise them"
            )
        permutation = np.arange(len(order))
        shuffle_in_place(permutation, self._seed, epoch, 0)
        ends = np.cumsum(np.concatenate(sizes)[permutation])
        # Positions 1 … N - 1 are targets once each. A single token has no target and still makes a
        # row.
        num_rows = max(1, -(-(int(ends[-1]) - 1) // self.length))
        rows = np.arange(num_rows, dtype=np.int64)
        shuffle_in_place(rows, self._seed, epoch, 1)
        return [order[permutation], ends, rows]
