"""One new position of each row on a CPU, in memory of its own.

At 43M such a step is some 200 small operations, and starting one costs more than its arithmetic. So everything that can be
settled before is: where each operation reads and writes, every view of it. What is left is a flat list of functions without
arguments, and the few operations that depend on how much the cache holds.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode.kv_cache import Cache
from model.decode.fast.layer import DecoderLayer, as_pairs
from model.decode.fast.fused_linear import Bound, Memory, Norm, bind_length


class _BoundLayer:
    """A layer's functions; R rows, x[R, D + 1] (the norm's floor last) is read and added to."""

    def __init__(self, layer: DecoderLayer, x: Tensor, turn: Tensor, turns: Tensor, memory: Memory) -> None:
        rows, heads, groups, head_dim = len(x), layer.heads, layer.groups, layer.head_dim
        self.before, qkv = layer.qkv.bind(x, memory)
        pairs = as_pairs(qkv.view(rows, -1, head_dim))
        queries = memory.take("queries", (rows, heads, head_dim))
        self.before.append(partial(torch.mul, pairs[:, :heads], turn, out=as_pairs(queries)))
        self._new, self._turns = pairs[:, heads:].unflatten(1, (2, groups)).transpose(0, 1), turns
        self._queries = queries.view(rows * groups, -1, head_dim)
        self._attended = memory.take("attended", self._queries.shape)

        network, gate_up = layer.gate_up.bind(x, memory)
        gate, up = gate_up.chunk(2, -1)
        inner = memory.take("inner", gate.shape)
        self.after: list[Bound] = [
            *layer.out.bind(x[:, :-1], self._attended.view(rows, -1), memory), *network, partial(F.silu, gate, inplace=True),
            partial(torch.mul, gate, up, out=inner), *layer.down.bind(x[:, :-1], inner, memory)]

    def read(self, mask: Tensor | None, place: Tensor, keys: Tensor, values: Tensor) -> None:
        """`place`, complex[2, R, K, d / 2], is where new keys and values go; keys[R · K, d, S] and values[R · K, S, d]."""
        for do in self.before:
            do()
        torch.mul(self._new, self._turns, out=place)
        scores = torch.bmm(self._queries, keys) if mask is None else torch.baddbmm(mask, self._queries, keys)
        torch.bmm(scores.softmax(-1), values, out=self._attended)
        for do in self.after:
            do()


class Step:
    """All layers and the norm behind them bound to memory for R rows. It is used by every step, so it belongs to one thread."""

    def __init__(self, layers: Sequence[DecoderLayer], norm: Norm, rows: int) -> None:
        head_dim = layers[0].head_dim
        self.rows, self._scale, self._weight = rows, head_dim**-0.5, norm.weight
        self._wide = torch.full((rows, len(norm.weight) + 1), norm.floor)
        self._x = self._wide[:, :-1]
        # Queries are scaled as they are turned. Values are turned by nothing, so that one operation writes them and keys.
        self._turn = torch.empty(rows, 1, head_dim // 2, dtype=torch.complex64)
        turns = torch.ones(2, rows, 1, head_dim // 2, dtype=torch.complex64)
        self._key_turn, memory = turns[0], Memory()
        self._length = memory.take("length", (rows, 1))
        self._measure = bind_length(self._wide, self._length)
        self._layers = [_BoundLayer(layer, self._wide, self._turn, turns, memory) for layer in layers]

    def read(self, x: Tensor, turn: Tensor, mask: Tensor | None, cache: Cache) -> Tensor:
        """x[R, D], turned by complex[R or 1, 1, d / 2] → what the norm makes of the last layer's [R, D].

        `mask`[R · K, 1, S] is added to the scores. Writes behind what the cache holds.
        """
        self._x.copy_(x)
        self._key_turn.copy_(turn)
        torch.mul(self._key_turn, self._scale, out=self._turn)
        for layer, *its in zip(self._layers, *cache.next_column(), strict=True):
            layer.read(mask, *its)
        self._measure()
        return torch.div(self._x, self._length).mul_(self._weight)
