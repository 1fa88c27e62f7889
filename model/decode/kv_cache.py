"""Keys and values of the positions already read, in memory allocated once."""

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from model.config import LlamaConfig


class LayerCache:
    """One layer's keys and values; a view into the `Cache` it belongs to."""

    def __init__(self, owner: "Cache", index: int) -> None:
        self._owner, self._keys, self._values = owner, owner.keys[index], owner.values[index]

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write [B, K, T, d] behind what is there; return all keys and values so far, [B, K, length + T, d]."""
        rows, start, stop = self._owner.rows, self._owner.length, self._owner.length + keys.shape[2]
        self._keys[:rows, :, start:stop], self._values[:rows, :, start:stop] = keys, values
        return self._keys[:rows, :, :stop], self._values[:rows, :, :stop]


class Cache:
    """Room for `capacity` positions of `rows` rows. `length` is how many are filled; the caller advances it.

    `rows` may be lowered, and raised again up to what was asked for: only the first `rows` are read and written.
    """

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, 2, rows, config.num_key_value_heads, capacity, config.head_dim)
        # One tensor, so that one operation can write keys and values.
        self.both = torch.zeros(shape, device=device, dtype=dtype)
        self.keys, self.values = self.both.unbind(1)  # [layers, rows, K, capacity, d]
        self.rows = rows
        self.length = 0

    def layer(self, index: int) -> LayerCache:
        """The part of layer `index`."""
        # Not kept: it holds its owner, and a circle of the two would hold the memory until Python looks for circles.
        return LayerCache(self, index)

    @cached_property
    def _views(self) -> tuple[Tensor, Tensor, Tensor]:
        pairs = torch.view_as_complex(self.both.unflatten(-1, (-1, 2)))
        keys, values = self.both.flatten(2, 3).unbind(1)
        return pairs, keys.mT, values

    def next_column(self) -> tuple[Iterable[Tensor], Iterable[Tensor], Iterable[Tensor]]:
        """For each layer of an fp32 cache: where one more position goes, as complex[2, R, K, d / 2]; and, that position with
        them, keys[R · K, d, length + 1] and values[R · K, length + 1, d]. (R rows of now.)
        """
        pairs, keys, values = self._views
        behind, filled = self.length, self.length + 1
        if self.rows < pairs.shape[2]:
            heads = self.rows * pairs.shape[3]
            pairs, keys, values = pairs.narrow(2, 0, self.rows), keys.narrow(1, 0, heads), values.narrow(1, 0, heads)
        return pairs.select(4, behind).unbind(), keys.narrow(3, 0, filled).unbind(), values.narrow(2, 0, filled).unbind()

    def select(self, rows: Tensor, start: int = 0) -> None:
        """Go on with `rows` (int64[n], any order, repeats allowed), of which positions before `start` stay in place."""
        for kept in (*self.keys, *self.values):
            # One layer at a time: the copy that indexing makes stays small.
            kept[: len(rows), :, start : self.length] = kept[:, :, start : self.length][rows]
        self.rows = len(rows)

    def take(self, other: "Cache", row: int) -> None:
        """Copy the rows of `other` into those from `row` on, the last columns of both together."""
        columns, rows = min(self.length, other.length), slice(row, row + other.rows)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, rows, :, self.length - columns : self.length] = (
                theirs[:, : other.rows, :, other.length - columns : other.length])
