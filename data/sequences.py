"""The token ids of documents, one split of a shard set: one stream of text to pretrain on.

train-00000.tokens.npy    the ids of many sequences, concatenated (uint16 or uint32)
train-00000.offsets.npy   start of each sequence, and the end of the last (int64[n + 1])
"""

from pathlib import Path
from typing import Any

import numpy as np

from data.ragged_arrays import RaggedArray, RaggedWriter

SHARD_TOKENS = 1 << 25
_FILES = ("tokens.npy", "offsets.npy")


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Return the narrowest on-disk type that holds every id."""
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<u4")


class SequenceWriter:
    """Write the sequences of one split; memory holds one shard of them at most."""

    def __init__(
        self, folder: Path, split: str, vocabulary_size: int, shard_tokens: int = SHARD_TOKENS
    ) -> None:
        """Write shards of about `shard_tokens` tokens into `folder`, which must exist.

        `vocabulary_size` decides the type of the ids.
        """
        self._tokens = RaggedWriter(folder, split, *_FILES, dtype=token_dtype(vocabulary_size))
        self._max_shard_tokens = shard_tokens
        self._num_sequences = 0
        self._num_tokens = 0

    def add(self, ids: np.ndarray) -> None:
        """Append one sequence, int[n]. A full shard is written to disk."""
        self._tokens.append(ids)
        self._num_sequences += 1
        self._num_tokens += len(ids)
        if self._tokens.num_values >= self._max_shard_tokens:
            self._tokens.write_shard()

    def close(self) -> dict[str, int]:
        """Write the last shard and return the counts of the split."""
        self._tokens.write_shard()
        return {"sequences": self._num_sequences, "tokens": self._num_tokens}


class Sequences:
    """The sequences of one split, read through memory maps."""

    def __init__(self, folder: Path, split: str) -> None:
        """Map the arrays of all shards into memory. Raises UserError if one is damaged."""
        self._tokens = RaggedArray(folder, split, *_FILES, dtype_kind="u")

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of all sequences."""
        return self._tokens.num_values

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sequence, int64[len(self)]."""
        return self._tokens.lengths()

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ids `[start, stop)` of sequence `index`, a view in the on-disk type."""
        return self._tokens.row(index, start, stop)

    def read_stream(self, start: int, stop: int) -> np.ndarray:
        """Return positions `[start, stop)` of the concatenation of all sequences, int64."""
        return self._tokens.read_stream(start, stop)
