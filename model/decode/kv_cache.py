"""KV cache: keys and values of the positions processed so far, in memory allocated once."""

import copy
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from model.config import LlamaConfig


class LayerKVCache:
    """A view of the keys and values of one layer of a `KVCache`."""

    def __init__(self, cache: "KVCache", index: int) -> None:
        self._cache = cache
        self._keys = cache.keys[index]
        self._values = cache.values[index]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys[R, K, T, d] and values[R, K, T, d] after the filled positions.

        Returns views of the keys and the values from the first position to the last new one, both
        [R, K, length + T, d]. Does not change the cache's `length`, which all layers share.
        """
        batch_size, start = self._cache.batch_size, self._cache.length
        stop = start + keys.shape[2]
        # The cache may be narrower than the activations.
        keys, values = keys.to(self._keys.dtype), values.to(self._values.dtype)
        columns = self._cache.columns
        if columns is None:
            self._keys[:batch_size, :, start:stop] = keys
            self._values[:batch_size, :, start:stop] = values
        else:
            rows = torch.arange(batch_size, device=columns.device)
            self._keys[rows, :, columns] = keys.squeeze(2)
            self._values[rows, :, columns] = values.squeeze(2)
        return self._keys[:batch_size, :, :stop], self._values[:batch_size, :, :stop]


class KVCache:
    """Keys and values of all layers for up to `capacity` positions of `batch_size` rows.

    `length` positions are filled, the same number in every row unless `columns` says otherwise. A
    forward pass writes after them, and `InferenceModel` advances `length` once all layers have
    written. Only the first `batch_size` rows are read and written; `batch_size` may be lowered, and
    raised again up to `num_rows`, the allocated number. Shapes: L layers, R rows, K key-value
    heads, d head_dim.
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
        # One tensor for keys and values, so that one operation can write both. Zeros, because
        # positions that were never written may be multiplied by a weight of zero, and memory that
        # was not initialized could hold NaN.
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.storage.unbind(1)  # [L, R, K, capacity, d]
        self.batch_size = batch_size
        self.length = 0
        # Where a step of one position writes in each row, int64[R]; None: at `length` in all rows.
        # `length` is the highest of them.
        self.columns: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Return the number of allocated rows."""
        return self.storage.shape[2]

    @property
    def capacity(self) -> int:
        """Return the number of allocated positions of a row."""
        return self.storage.shape[4]

    def rows(self, start: int, num_rows: int) -> "KVCache":
        """Return a cache that is `num_rows` of these rows from `start` on, with nothing filled."""
        part = copy.copy(self)
        # What was computed from the whole storage.
        for name in ("_flat_views", "_first_entries"):
            part.__dict__.pop(name, None)
        part.storage = self.storage.narrow(2, start, num_rows)
        part.keys, part.values = part.storage.unbind(1)
        part.batch_size, part.length, part.columns = num_rows, 0, None
        return part

    def layer(self, index: int) -> LayerKVCache:
        """Return the view of layer `index`."""
        # A new object at every call: storing it here would create a reference cycle, and the memory
        # of the cache would be freed only when Python's garbage collector runs.
        return LayerKVCache(self, index)

    @cached_property
    def _flat_views(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of the whole storage, made once, that `next_views` narrows.

        Keys and values as complex pairs [L, 2, R, K, capacity, d / 2]; keys transposed
        [L, R * K, d, capacity]; values [L, R * K, capacity, d].
        """
        pairs = torch.view_as_complex(self.storage.unflatten(-1, (-1, 2)))
        keys, values = self.storage.flatten(2, 3).unbind(1)
        return pairs, keys.mT, values

    def next_views(
        self, num_positions: int
    ) -> tuple[Iterable[Tensor], Iterable[Tensor], Iterable[Tensor]]:
        """Return three views per layer of an fp32 cache, for a step of T = `num_positions`.

        The first is where the new keys and values are written, complex[2, R, K, T, d / 2]: complex,
        because RoPE multiplies pairs of dimensions as complex numbers, for which PyTorch needs
        fp32. With `columns` it is the whole layer instead, [2 * rows * K * capacity, d], of which
        `next_entries` are written. The others include the new positions: keys, transposed
        [R * K, d, length + T], and values [R * K, length + T, d].
        """
        # [L, 2, R, K, capacity, d / 2], [L, R * K, d, capacity] and [L, R * K, capacity, d].
        pairs, keys, values = self._flat_views
        new_length = self.length + num_positions
        # Leave out allocated rows that are not in use. Skipped if there are none, because each view
        # costs time in every step.
        if self.batch_size < pairs.shape[2]:
            heads = self.batch_size * pairs.shape[3]
            pairs = pairs.narrow(2, 0, self.batch_size)
            keys = keys.narrow(1, 0, heads)
            values = values.narrow(1, 0, heads)
        if self.columns is None:
            written = pairs.narrow(4, self.length, num_positions)
        else:
            written = self.storage.flatten(1, 4)
        return (
            written.unbind(),
            keys.narrow(3, 0, new_length).unbind(),
            values.narrow(2, 0, new_length).unbind(),
        )

    def next_entries(self) -> Tensor | None:
        """Return which entries of a layer a step of one position writes, int64[2 * R * K].

        An entry is one position of one head in a layer [2 * rows * K * capacity, d]. None without
        `columns`: then it is the same column of all rows.
        """
        if self.columns is None:
            return None
        return (self._first_entries[:, : self.batch_size] + self.columns[:, None]).flatten()

    @cached_property
    def _first_entries(self) -> Tensor:
        """Return the first entry of every head in a layer, int64[2, rows, K]."""
        shape = self.storage.shape[1:4]
        return torch.arange(shape.numel()).view(shape) * self.capacity

    def select_rows(self, rows: Tensor, start: int = 0) -> None:
        """Make row i a copy of the present row rows[i], int64[n], and set the batch size to n.

        Positions before `start` are not copied; the caller must know that they are equal in row i
        and row rows[i].
        """
        # Layer by layer, because indexing with a tensor makes a temporary copy.
        for layer in (*self.keys, *self.values):
            layer[: len(rows), :, start : self.length] = layer[:, :, start : self.length][rows]
        self.batch_size = len(rows)

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of row `source` to row `target`."""
        self.storage[:, :, target, :, :length] = self.storage[:, :, source, :, :length]
