"""Keys and values of the positions already read, in memory allocated once."""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from model.config import LlamaConfig


class LayerKVCache:
    """One layer's keys and values; a view into the `Cache` it belongs to."""

    def __init__(self, owner: "KVCache", index: int) -> None:
        self._owner, self._keys, self._values = owner, owner.keys[index], owner.values[index]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, T, d] behind what is there; return all keys and values so far, [B, K, length + T, d]."""
        rows, start, stop = (
            self._owner.batch_size,
            self._owner.length,
            self._owner.length + keys.shape[2],
        )
        self._keys[:rows, :, start:stop], self._values[:rows, :, start:stop] = keys, values
        return self._keys[:rows, :, :stop], self._values[:rows, :, :stop]


class KVCache:
    """Room for `capacity` positions of `batch_size` rows. `length` is how many are filled; the caller advances it.

    `batch_size` may be lowered, and raised again up to what was asked for: only the first `batch_size` are read and written.
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
        # One tensor, so that one operation can write keys and values.
        self.storage = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.storage.unbind(1)  # [layers, rows, K, capacity, d]
        self.batch_size = batch_size
        self.length = 0

    def layer(self, index: int) -> LayerKVCache:
        """The part of layer `index`."""
        # Not kept: it holds its owner, and a circle of the two would hold the memory until Python looks for circles.
        return LayerKVCache(self, index)

    @cached_property
    def _flat_views(self) -> tuple[Tensor, Tensor, Tensor]:
        pairs = torch.view_as_complex(self.storage.unflatten(-1, (-1, 2)))
        keys, values = self.storage.flatten(2, 3).unbind(1)
        return pairs, keys.mT, values

    def next_position_views(self) -> tuple[Iterable[Tensor], Iterable[Tensor], Iterable[Tensor]]:
        """For each layer of an fp32 cache: where one more position goes, as complex[2, R, K, d / 2]; and, that position with
        them, keys[R · K, d, length + 1] and values[R · K, length + 1, d]. (R rows of now.)
        """
        pairs, keys, values = self._flat_views
        position, new_length = self.length, self.length + 1
        if self.batch_size < pairs.shape[2]:
            heads = self.batch_size * pairs.shape[3]
            pairs, keys, values = (
                pairs.narrow(2, 0, self.batch_size),
                keys.narrow(1, 0, heads),
                values.narrow(1, 0, heads),
            )
        return (
            pairs.select(4, position).unbind(),
            keys.narrow(3, 0, new_length).unbind(),
            values.narrow(2, 0, new_length).unbind(),
        )

    def select_rows(self, rows: Tensor, start: int = 0) -> None:
        """Go on with `rows` (int64[n], any order, repeats allowed), of which positions before `start` stay in place."""
        for kept in (*self.keys, *self.values):
            # One layer at a time: the copy that indexing makes stays small.
            kept[: len(rows), :, start : self.length] = kept[:, :, start : self.length][rows]
        self.batch_size = len(rows)

    def copy_from(self, other: "KVCache", first_row: int) -> None:
        """Copy the rows of `other` into those from `first_row` on, the last columns of both together."""
        columns, rows = (
            min(self.length, other.length),
            slice(first_row, first_row + other.batch_size),
        )
        for target, source in ((self.keys, other.keys), (self.values, other.values)):
            target[:, rows, :, self.length - columns : self.length] = source[
                :, : other.batch_size, :, other.length - columns : other.length
            ]
