"""The token arrays of one split: numbered shards of memory-mapped files.

    train-00000.tokens.npy    the ids of many sequences, concatenated (uint16 or uint32)
    train-00000.offsets.npy   start of each sequence, and the end of the last (int64[n + 1])

Sequences with a loss on spans only have two more files:

    train-00000.spans.npy        start and stop of each span within its sequence, int32[k, 2]
    train-00000.span_offsets.npy first span of each sequence, and the number of spans (int64[n + 1])

The arrays stay on disk: a corpus larger than memory can be read in any order.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError

SHARD_TOKENS = 1 << 25
# The ids of a record, and start and stop of each of its spans.
EncodedRecord = tuple[list[int], list[tuple[int, int]]]


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    """Return the narrowest on-disk type that holds every id."""
    return np.dtype("<u2") if vocabulary_size <= 1 << 16 else np.dtype("<u4")


class ShardWriter:
    """Write the sequences of one split; memory holds one shard of them at most."""

    def __init__(
        self,
        folder: Path,
        split: str,
        vocabulary_size: int,
        shard_tokens: int = SHARD_TOKENS,
        *,
        has_spans: bool = False,
    ) -> None:
        """Write shards of about `shard_tokens` tokens into `folder`, which must exist.

        `vocabulary_size` decides the type of the ids; `has_spans` tells whether sequences have
        spans.
        """
        self._folder = folder
        self._split = split
        self._max_shard_tokens = shard_tokens
        self._has_spans = has_spans
        self._dtype = token_dtype(vocabulary_size)
        self._num_shards = 0
        self._num_sequences = 0
        self._num_tokens = 0
        self._start_shard()

    def _start_shard(self) -> None:
        """Start an empty shard: drop the arrays collected for the one before it."""
        self._tokens: list[np.ndarray] = []
        self._offsets = [0]
        self._spans: list[np.ndarray] = []
        self._span_offsets = [0]

    def add(self, ids: np.ndarray, spans: np.ndarray | None = None) -> None:
        """Append one sequence, int[n], with its spans, int[k, 2].

        A writer with `has_spans` needs spans for every sequence. A full shard is written to disk.
        """
        self._tokens.append(np.asarray(ids, dtype=self._dtype))
        self._offsets.append(self._offsets[-1] + len(ids))
        self._num_sequences += 1
        self._num_tokens += len(ids)
        if spans is not None:
            self._spans.append(spans.astype(np.int32))
            self._span_offsets.append(self._span_offsets[-1] + len(spans))
        if self._offsets[-1] >= self._max_shard_tokens:
            self._write_shard()

    def close(self) -> dict[str, int]:
        """Write the last shard and return the counts of the split."""
        if self._tokens:
            self._write_shard()
        return {"sequences": self._num_sequences, "tokens": self._num_tokens}

    def _write_shard(self) -> None:
        """Write the arrays of the current shard, one file each, and start the next shard."""
        arrays = {
            "tokens": np.concatenate(self._tokens),
            "offsets": np.array(self._offsets, dtype=np.int64),
        }
        if self._has_spans:
            arrays["spans"] = np.concatenate(self._spans)
            arrays["span_offsets"] = np.array(self._span_offsets, dtype=np.int64)
        for name, array in arrays.items():
            path = self._folder / f"{self._split}-{self._num_shards:05d}.{name}.npy"
            np.save(path, array, allow_pickle=False)
        self._num_shards += 1
        self._start_shard()


class Sequences:
    """The sequences of one split, read through memory maps."""

    def __init__(self, folder: Path, split: str) -> None:
        """Map the arrays of all shards into memory.

        Raises UserError if an array is damaged or does not fit the others of its shard.
        """
        token_paths = sorted(folder.glob(f"{split}-*.tokens.npy"))
        self._tokens = _load_arrays(token_paths, "tokens", "u")
        self._offsets = _load_offsets(token_paths, "offsets", self._tokens)
        # Pretraining text has no span files.
        span_paths = [path for path in token_paths if _sibling(path, "spans").exists()]
        self._spans = _load_arrays(span_paths, "spans", "i", columns=2)
        self._span_offsets = _load_offsets(span_paths, "span_offsets", self._spans)
        # The first sequence and the first token position of each shard, and the totals at the end.
        self._first_sequences = np.cumsum([0] + [len(offsets) - 1 for offsets in self._offsets])
        self._first_positions = np.cumsum([0] + [len(tokens) for tokens in self._tokens])

    def __len__(self) -> int:
        return int(self._first_sequences[-1])

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of all sequences."""
        return int(self._first_positions[-1])

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sequence, int64[len(self)]."""
        if not self._offsets:
            return np.zeros(0, np.int64)
        return np.concatenate([np.diff(offsets) for offsets in self._offsets])

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ids `[start, stop)` of sequence `index`, a view in the on-disk type."""
        shard, local_index = self._locate(index)
        offsets = self._offsets[shard]
        sequence_start, end = int(offsets[local_index]), int(offsets[local_index + 1])
        if stop is not None:
            end = min(sequence_start + stop, end)
        return self._tokens[shard][sequence_start + start : end]

    def spans(self, index: int) -> np.ndarray:
        """Return start and stop of each span within sequence `index`, int32[k, 2]."""
        shard, local_index = self._locate(index)
        first, stop = self._span_offsets[shard][local_index : local_index + 2]
        return self._spans[shard][first:stop]

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the spans of each shard, int32[k, 2], and each sequence's first span, int64[n].

        A span is the start and stop, within its sequence, of tokens that have a loss. The second
        array has indices into the first. Nothing is yielded for text, which has no spans.
        """
        for spans, offsets in zip(self._spans, self._span_offsets, strict=True):
            yield spans, np.asarray(offsets[:-1])

    def read_stream(self, start: int, stop: int) -> np.ndarray:
        """Return positions `[start, stop)` of the concatenation of all sequences, int64."""
        parts = []
        for tokens, shard_start in zip(self._tokens, self._first_positions[:-1], strict=True):
            # The requested positions, clipped to those of this shard.
            low = max(start - int(shard_start), 0)
            high = min(stop - int(shard_start), len(tokens))
            if low < high:
                parts.append(tokens[low:high].astype(np.int64))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _locate(self, index: int) -> tuple[int, int]:
        """Return the shard that holds sequence `index`, and the sequence's index in that shard."""
        # The last shard whose first sequence is not after this one.
        shard = int(np.searchsorted(self._first_sequences, index, side="right")) - 1
        return shard, index - int(self._first_sequences[shard])


class InMemorySequences:
    """Sequences with spans in memory, for a few records that no shard set holds.

    The methods are those of `Sequences`.
    """

    def __init__(self, records: Sequence[EncodedRecord]) -> None:
        """Store the ids and spans of each record as arrays."""
        self._ids = [np.array(ids, dtype=np.int64) for ids, _ in records]
        self._spans = [np.array(spans, dtype=np.int32).reshape(-1, 2) for _, spans in records]

    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each sequence, int64[n]."""
        return np.array([len(ids) for ids in self._ids], dtype=np.int64)

    def tokens(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return ids `[start, stop)` of sequence `index`, int64."""
        return self._ids[index][start:stop]

    def spans(self, index: int) -> np.ndarray:
        """Return the spans of sequence `index`, int32[k, 2]."""
        return self._spans[index]

    def iter_shard_spans(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all spans, int32[k, 2], and the index of each sequence's first span, int64[n].

        The records count as one shard; nothing is yielded if there are none.
        """
        if self._spans:
            counts = [len(spans) for spans in self._spans[:-1]]
            yield np.concatenate(self._spans), np.cumsum([0, *counts])


def _sibling(tokens_path: Path, name: str) -> Path:
    """Return the path of another array of the shard whose tokens lie at `tokens_path`."""
    return tokens_path.with_name(tokens_path.name.replace(".tokens.", f".{name}."))


def _load_arrays(
    token_paths: list[Path], name: str, dtype_kind: str, *, columns: int | None = None
) -> list[np.ndarray]:
    """Memory-map the array `name` of each shard; `token_paths` name the shards.

    `dtype_kind` is NumPy's: "u" for unsigned integers, "i" for signed ones. An array has one
    dimension, or two if `columns` is given. Raises UserError if a file is missing, if it is not
    such an array, or if its header promises more than the file holds.
    """
    arrays = []
    for path in (_sibling(token_path, name) for token_path in token_paths):
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        # A missing file raises OSError, a damaged header any of the others.
        except (OSError, ValueError, EOFError, SyntaxError, OverflowError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{path} cannot be read: {reason}: prepare {path.parent} again"
            ) from None
        row_shape = (columns,) if columns else ()
        # np.load returns something other than an array for a .npz archive.
        is_valid = isinstance(array, np.ndarray) and array.dtype.kind == dtype_kind
        if not is_valid or array.shape[1:] != row_shape:
            raise UserError(f"{path} does not hold {name}: prepare {path.parent} again")
        arrays.append(array)
    return arrays


def _load_offsets(token_paths: list[Path], name: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Memory-map the offsets `name` of each shard, which cut the shard's array in `arrays`.

    Raises UserError if the offsets of a shard do not rise from 0 to the length of its array.
    """
    all_offsets = _load_arrays(token_paths, name, "i")
    for path, offsets, array in zip(token_paths, all_offsets, arrays, strict=True):
        is_valid = len(offsets) and offsets[0] == 0 and offsets[-1] == len(array)
        if not is_valid or (np.diff(offsets) < 0).any():
            raise UserError(f"{path}: its {name} do not fit it: prepare {path.parent} again")
    return all_offsets
