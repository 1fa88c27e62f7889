"""Rows of preferences: the chosen and the rejected answer of a pair follow one prompt.

`data.batching.shared_prompts` says how.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import PackedBatchLoader
from data.batching.examples import KeptParts
from data.batching.shared_prompts import (
    SharedPrompt,
    SharedPromptBatch,
    collate_shared_prompts,
)
from data.records import EncodedRecord
from data.stored_records import Records


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
class PreferenceBatch(SharedPromptBatch):
    """Rows of pairs; `answer_lengths`[n, 2] are of the chosen and of the rejected answer."""

    pairs: Tensor  # int64[n], the numbers of the pairs


def collate_preferences(
    rows: Sequence[Sequence[PreferenceExample]], length: int
) -> PreferenceBatch:
    """Collate rows, each a list of pairs, into a batch of rows of `length` positions.

    The pairs of a row follow one another; the rest of the row is padding with id 0.
    """
    batch = collate_shared_prompts(
        [[SharedPrompt(prompt, answers) for _, prompt, *answers in examples] for examples in rows],
        length,
    )
    pairs = torch.tensor([example.pair for examples in rows for example in examples])
    return PreferenceBatch(
        **{**vars(batch), "answer_lengths": batch.answer_lengths.view(-1, 2)}, pairs=pairs
    )


class PreferenceBatchLoader(PackedBatchLoader):
    """Rows of several pairs each."""

    collate = staticmethod(collate_preferences)
