"""KV cache: keys and values of the positions processed so far, in memory allocated once."""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from model.config import LlamaConfig


class LayerKVCache:
    """A view of the keys and values of one layer of a `KVCache`."""

    def __init__(self, owner: "KVCache", index: int) -> None:
        self._owner, self._keys, self._values = owner, owner.keys[index], owner.values[index]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values [R, K, T, d] behind the filled positions.

        Returns views of all keys and values up to and with the new ones, [R, K, length + T, d].
        """
        rows, start = self._owner.batch_size, self._owner.length
        stop = start + keys.shape[2]
        self._keys[:rows, :, start:stop] = keys
        self._values[:rows, :, start:stop] = values
        return self._keys[:rows, :, :stop], self._values[:rows, :, :stop]


class KVCache:
    """Keys and values of all layers for up to `capacity` positions of `batch_size` rows.

    `length` positions are filled, the same number in every row. A forward pass writes behind them,
    and `InferenceModel` advances `length` once all layers have written. Only the first `batch_size`
    rows are read and written; the number may be lowered, and raised again up to the allocated one.
    Shapes: R rows, K key-value heads, d head_dim.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch_size: int,
        capacity: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (
            config.num_hidden_layers,
            2,
            batch_size,
            config.num_key_value_heads,
            capacity,
            config.head_dim,
        )
        # One tensor for keys and values, so that one operation can write both.
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.storage.unbind(1)  # [layers, R, K, capacity, d]
        self.batch_size = batch_size
        self.length = 0

    def layer(self, index: int) -> LayerKVCache:
        """Return the view of layer `index`."""
        # Built on demand: storing it would create a reference cycle, and the memory of the cache
        # would be freed only when Python's garbage collector runs.
        return LayerKVCache(self, index)

    @cached_property
    def _flat_views(self) -> tuple[Tensor, Tensor, Tensor]:
        pairs = torch.view_as_complex(self.storage.unflatten(-1, (-1, 2)))
        keys, values = self.storage.flatten(2, 3).unbind(1)
        return pairs, keys.mT, values

    def next_position_views(self) -> tuple[Iterable[Tensor], Iterable[Tensor], Iterable[Tensor]]:
        """Return three views per layer of an fp32 cache, for a decode step of one position.

        Where the new keys and values go, complex[2, R, K, d / 2]; and, with the new position
        included, the keys transposed [R * K, d, length + 1] and the values [R * K, length + 1, d].
        """
        pairs, keys, values = self._flat_views
        new_length = self.length + 1
        if self.batch_size < pairs.shape[2]:
            heads = self.batch_size * pairs.shape[3]
            pairs = pairs.narrow(2, 0, self.batch_size)
            keys = keys.narrow(1, 0, heads)
            values = values.narrow(1, 0, heads)
        return (
            pairs.select(4, self.length).unbind(),
            keys.narrow(3, 0, new_length).unbind(),
            values.narrow(2, 0, new_length).unbind(),
        )

    def select_rows(self, rows: Tensor, start: int = 0) -> None:
        """Replace the rows by `rows` (int64[n], in any order, with repeats) and shrink to n rows.

        Positions before `start` stay where they are: the caller knows that the rows share them.
        """
        for layer in (*self.keys, *self.values):
            # Layer by layer, because indexing with a tensor makes a temporary copy.
            layer[: len(rows), :, start : self.length] = layer[:, :, start : self.length][rows]
        self.batch_size = len(rows)

    def copy_from(self, other: "KVCache", first_row: int) -> None:
        """Copy the rows of `other` into those from `first_row` on, aligned at the last position."""
        columns = min(self.length, other.length)
        rows = slice(first_row, first_row + other.batch_size)
        target_columns = slice(self.length - columns, self.length)
        source_columns = slice(other.length - columns, other.length)
        for target, source in ((self.keys, other.keys), (self.values, other.values)):
            target[:, rows, :, target_columns] = source[:, : other.batch_size, :, source_columns]
