"""Rows of preferences: both answers of a pair follow one prompt, which is read once.

A pair is prompt, chosen answer, rejected answer. The rejected answer does not attend to the chosen
one, and its positions go on from the end of the prompt, so that the hidden states of either answer
are those of prompt and answer alone. The first ids of both answers are predicted from the last
position of the prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import Batch, PackedBatchLoader
from data.batching.examples import KeptParts
from data.records import EncodedRecord
from data.stored_records import Records

# The parts of a pair, as `PreferenceBatch.parts` numbers them.
PROMPT, CHOSEN, REJECTED = range(3)


class PreferenceExample(NamedTuple):
    """A pair: its number in the run, and its ids, int64[p], int64[c] and int64[r]."""

    pair: int
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def count_positions(spans: np.ndarray) -> np.ndarray:
    """Return the positions of pairs whose answers have these spans, int[n, 2, 2] -> int64[n].

    The last id of either answer is only a target, and makes no position.
    """
    return spans[:, 1, 1].astype(np.int64) - 2


class PreferenceLengths:
    """The lengths of `PreferenceExamples`. Implements `data.batching.examples.ExampleLengths`."""

    def whole_spans(self, spans: np.ndarray, first_record: int) -> np.ndarray:
        """See `ExampleLengths`."""
        whole = spans.astype(np.int64)
        # `ExampleLengths` counts one id more than positions, and a pair has two.
        whole[1::2] -= 1
        return whole

    def fit(
        self, spans: np.ndarray, first_spans: np.ndarray, first_record: int, length: int
    ) -> KeptParts:
        """See `ExampleLengths`: a pair is kept whole or left out."""
        positions = count_positions(spans.reshape(-1, 2, 2))
        fits = positions <= length
        return KeptParts(np.where(fits, positions + 1, 0), 2 * fits.astype(np.int64))


class PreferenceExamples:
    """The pairs of one split of one shard set, for rows of a certain length.

    Implements `data.batching.examples.PackableExamples`. A pair that does not fit is left out:
    without its end an answer would have the probability of another one.
    """

    # No pair is cut.
    num_truncated = 0

    def __init__(
        self,
        records: Records[Any],
        length: int,
        encode: Callable[[int], EncodedRecord],
        first_pair: int = 0,
    ) -> None:
        """Find the pairs that fit rows of `length` positions.

        `encode` returns the ids and spans of the record with a certain index. `first_pair` is the
        number of the first pair, if those of other sets come before it.
        """
        self._encode = encode
        self._first_pair = first_pair
        shards = [count_positions(s.reshape(-1, 2, 2)) for s, _ in records.iter_shard_spans()]
        positions = np.concatenate([np.zeros(0, np.int64), *shards])
        self._lengths = np.where(positions <= length, positions, 0)

    def __len__(self) -> int:
        """Return the number of pairs, including those that are left out."""
        return len(self._lengths)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of positions of each pair, int64[n]; 0: it does not fit a row."""
        return self._lengths

    def example(self, index: int, epoch: int) -> PreferenceExample:
        """Return pair `index` of the split; all epochs have the same."""
        ids, ((start, middle), (_, stop)) = self._encode(index)
        array = np.array(ids, dtype=np.int64)
        return PreferenceExample(
            self._first_pair + index, array[:start], array[start:middle], array[middle:stop]
        )


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch(Batch):
    """Rows of pairs. Targets are in the order of the pairs, the chosen answer of each first."""

    parts: Tensor  # int64[B, T]: PROMPT, CHOSEN or REJECTED
    pairs: Tensor  # int64[n], the numbers of the pairs
    answer_lengths: Tensor  # int64[n, 2], targets of the chosen and of the rejected answer

    def attention_mask(self) -> Tensor:
        """Return the mask of allowed attention, bool[B, 1, T, T].

        A position attends to itself and to earlier positions of its pair, but not to those of the
        other answer.
        """
        same_pair = super().attention_mask()
        assert same_pair is not None
        queries, keys = self.parts.unsqueeze(2), self.parts.unsqueeze(1)
        return same_pair & ((keys == PROMPT) | (keys == queries)).unsqueeze(1)


def collate_preferences(
    rows: Sequence[Sequence[PreferenceExample]], length: int
) -> PreferenceBatch:
    """Collate rows, each a list of pairs, into a batch of rows of `length` positions.

    The pairs of a row follow one another; the rest of the row is padding with id 0.
    """
    shape = len(rows), length
    ids, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, parts = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    loss_indices, targets, pairs, answer_lengths = [], [], [], []
    num_padding = 0
    for row, examples in enumerate(rows):
        start = 0
        # Segment 0 is the padding.
        for segment, (pair, prompt, chosen, rejected) in enumerate(examples, start=1):
            chosen_start = start + len(prompt)
            rejected_start = chosen_start + len(chosen) - 1
            stop = rejected_start + len(rejected) - 1
            ids[row, start:stop] = np.concatenate([prompt, chosen[:-1], rejected[:-1]])
            parts[row, chosen_start:rejected_start] = CHOSEN
            parts[row, rejected_start:stop] = REJECTED
            positions[row, start:rejected_start] = np.arange(rejected_start - start)
            positions[row, rejected_start:stop] = len(prompt) + np.arange(stop - rejected_start)
            segments[row, start:stop] = segment
            for answer, answer_start in ((chosen, chosen_start), (rejected, rejected_start)):
                # Its first id is predicted by the end of the prompt, the others by the one before.
                predicting = np.arange(answer_start - 1, answer_start - 1 + len(answer))
                predicting[0] = chosen_start - 1
                loss_indices.append(row * length + predicting)
                targets.append(answer)
            pairs.append(pair)
            answer_lengths.append((len(chosen), len(rejected)))
            start = stop
        num_padding += length - start
    return PreferenceBatch(
        ids=torch.from_numpy(ids),
        targets=torch.from_numpy(np.concatenate(targets)),
        loss_indices=torch.from_numpy(np.concatenate(loss_indices)),
        positions=torch.from_numpy(positions),
        segments=torch.from_numpy(segments),
        num_padding=num_padding,
        parts=torch.from_numpy(parts),
        pairs=torch.tensor(pairs),
        answer_lengths=torch.tensor(answer_lengths),
    )


class PreferenceBatchLoader(PackedBatchLoader):
    """Rows of several pairs each."""

    collate = staticmethod(collate_preferences)
