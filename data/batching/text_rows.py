"""Pretraining rows: the stream of all documents of an epoch, cut at the row length.

All sequences of all mixed sets of an epoch are put in one seeded random order and concatenated. The
stream is cut into rows of `length` + 1 tokens that overlap by one, so that each token except the
first is a target once. The rows are shuffled too: those of a long document do not follow one
another. Nothing is dropped: the first tokens of the epoch fill up its last row.

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

    The arrays of an epoch: `order`, the sequences in the order of the stream; `ends`, where each of
    them ends in the stream; `rows`, for each row of the epoch the index of its stretch of the
    stream, which begins at this index times `length`.
    """

    array_names = ("order", "ends", "rows")

    def __init__(self, mixture: Mixture, *, seed: int, length: int, folder: Path) -> None:
        """Plan rows of `length` positions of a mixture of text."""
        super().__init__(seed=seed, length=length, folder=folder)
        self._mixture = mixture
        self._set_lengths = [sequences.lengths() for sequences in mixture.sequence_sets]

    @property
    def tokens_per_epoch(self) -> int:
        """Return the number of tokens of an epoch, or the average if weights are fractions."""
        pairs = zip(self._mixture.weights, self._mixture.sequence_sets, strict=True)
        return int(sum(weight * sequences.num_tokens for weight, sequences in pairs))

    def num_rows(self, epoch: int) -> int:
        """Return the number of rows of an epoch."""
        _order, _ends, rows = self._load_epoch(epoch)
        return len(rows)

    def epochs_completed(self, num_rows: int) -> float:
        """Return how many epochs the first `num_rows` rows make, by their tokens."""
        return num_rows * self.length / self.tokens_per_epoch

    def document_parts(self, epoch: int) -> np.ndarray:
        """Return the lengths of the parts that rows cut the documents into, int64[n]."""
        _order, ends, rows = self._load_epoch(epoch)
        cuts = np.arange(1, len(rows), dtype=np.int64) * self.length
        return np.diff(np.union1d(ends, cuts), prepend=0)

    def row(self, row_number: int) -> np.ndarray:
        """Return the ids of row `row_number`, int64[length + 1].

        Rows are numbered across epochs, from the start of the run.
        """
        epoch, row_in_epoch = self._locate(row_number)
        order, ends, rows = self._load_epoch(epoch)
        num_tokens = int(ends[-1])
        stretch = int(rows[row_in_epoch])
        start = stretch * self.length
        ids = self._read_stream(order, ends, start, min(start + self.length + 1, num_tokens))
        # The row at the end of the stream is filled up with the stream's beginning, which is read
        # several times if the whole stream is shorter than a row.
        while len(ids) <= self.length:
            num_missing = self.length + 1 - len(ids)
            beginning = self._read_stream(order, ends, 0, min(num_missing, num_tokens))
            ids = np.concatenate([ids, beginning])
        return ids

    def _read_stream(
        self, order: np.ndarray, ends: np.ndarray, start: int, stop: int
    ) -> np.ndarray:
        """Return positions `[start, stop)` of the stream, int64[stop - start].

        The stream is the concatenation of the sequences `order`, which end at the positions `ends`.
        """
        parts = []
        # The first sequence that ends after `start`.
        index = int(np.searchsorted(ends, start, side="right"))
        position = start
        while position < stop:
            sequence_start = int(ends[index - 1]) if index else 0
            part_stop = min(stop, int(ends[index]))
            set_index, sequence = unpack_item(int(order[index]))
            sequences = self._mixture.sequence_sets[set_index]
            parts.append(
                sequences.tokens(sequence, position - sequence_start, part_stop - sequence_start)
            )
            position = part_stop
            index += 1
        return np.concatenate(parts).astype(np.int64)

    def _identity(self) -> dict[str, object]:
        """Return everything that an epoch depends on."""
        return {
            "seed": self._seed,
            "length": self.length,
            "weights": list(self._mixture.weights),
            "tokens": [sequences.num_tokens for sequences in self._mixture.sequence_sets],
        }

    def _build_arrays(self, epoch: int) -> list[np.ndarray]:
        """Select and shuffle the sequences of an epoch, cut the stream into rows and shuffle these.

        Raises UserError if the weights leave no sequence.
        """
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
        # The last number tells this shuffle from that of the rows below.
        shuffle_in_place(permutation, self._seed, epoch, 0)
        ends = np.cumsum(np.concatenate(sizes)[permutation])
        # Positions 1 to N - 1 of a stream of N tokens are targets once each. A single token has no
        # target and still makes a row.
        num_rows = max(1, -(-(int(ends[-1]) - 1) // self.length))
        rows = np.arange(num_rows, dtype=np.int64)
        shuffle_in_place(rows, self._seed, epoch, 1)
        return [order[permutation], ends, rows]
