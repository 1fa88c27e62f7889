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

from model.decode.fast.fused_linear import BufferPool, InferenceRMSNorm, Op, capture_row_norms
from model.decode.fast.layer import InferenceLayer, as_complex_pairs
from model.decode.kv_cache import KVCache


class _CapturedLayer:
    """A layer's functions; R rows, x[R, D + 1] (the norm's floor last) is read and added to."""

    def __init__(
        self,
        layer: InferenceLayer,
        x: Tensor,
        query_rotation: Tensor,
        kv_rotations: Tensor,
        buffers: BufferPool,
    ) -> None:
        rows, heads, groups, head_dim = len(x), layer.num_heads, layer.num_kv_heads, layer.head_dim
        self.pre_attention_ops, qkv = layer.qkv.capture(x, buffers)
        pairs = as_complex_pairs(qkv.view(rows, -1, head_dim))
        queries = buffers.get("queries", (rows, heads, head_dim))
        self.pre_attention_ops.append(
            partial(torch.mul, pairs[:, :heads], query_rotation, out=as_complex_pairs(queries))
        )
        self._new_kv, self._kv_rotations = (
            pairs[:, heads:].unflatten(1, (2, groups)).transpose(0, 1),
            kv_rotations,
        )
        self._queries = queries.view(rows * groups, -1, head_dim)
        self._attention_out = buffers.get("attended", self._queries.shape)

        mlp_ops, gate_up = layer.gate_up.capture(x, buffers)
        gate, up = gate_up.chunk(2, -1)
        mlp_hidden = buffers.get("inner", gate.shape)
        self.post_attention_ops: list[Op] = [
            *layer.out.capture(x[:, :-1], self._attention_out.view(rows, -1), buffers),
            *mlp_ops,
            partial(F.silu, gate, inplace=True),
            partial(torch.mul, gate, up, out=mlp_hidden),
            *layer.down.capture(x[:, :-1], mlp_hidden, buffers),
        ]

    def run(self, mask: Tensor | None, kv_out: Tensor, keys: Tensor, values: Tensor) -> None:
        """`kv_out`, complex[2, R, K, d / 2], is where new keys and values go; keys[R · K, d, S] and values[R · K, S, d]."""
        for op in self.pre_attention_ops:
            op()
        torch.mul(self._new_kv, self._kv_rotations, out=kv_out)
        scores = (
            torch.bmm(self._queries, keys)
            if mask is None
            else torch.baddbmm(mask, self._queries, keys)
        )
        torch.bmm(scores.softmax(-1), values, out=self._attention_out)
        for op in self.post_attention_ops:
            op()


class CapturedDecodeStep:
    """All layers and the norm behind them bound to memory for R rows. It is used by every step, so it belongs to one thread."""

    def __init__(
        self, layers: Sequence[InferenceLayer], norm: InferenceRMSNorm, batch_size: int
    ) -> None:
        head_dim = layers[0].head_dim
        self.batch_size, self._scale, self._norm_weight = batch_size, head_dim**-0.5, norm.weight
        self._x_with_eps = torch.full((batch_size, len(norm.weight) + 1), norm.eps_column)
        self._x = self._x_with_eps[:, :-1]
        # Queries are scaled as they are turned. Values are turned by nothing, so that one operation writes them and keys.
        self._query_rotation = torch.empty(batch_size, 1, head_dim // 2, dtype=torch.complex64)
        kv_rotations = torch.ones(2, batch_size, 1, head_dim // 2, dtype=torch.complex64)
        self._key_rotation, buffers = kv_rotations[0], BufferPool()
        self._row_norms = buffers.get("length", (batch_size, 1))
        self._compute_row_norms = capture_row_norms(self._x_with_eps, self._row_norms)
        self._layers = [
            _CapturedLayer(layer, self._x_with_eps, self._query_rotation, kv_rotations, buffers)
            for layer in layers
        ]

    def run(self, x: Tensor, rotation: Tensor, mask: Tensor | None, cache: KVCache) -> Tensor:
        """x[R, D], turned by complex[R or 1, 1, d / 2] → what the norm makes of the last layer's [R, D].

        `mask`[R · K, 1, S] is added to the scores. Writes behind what the cache holds.
        """
        self._x.copy_(x)
        self._key_rotation.copy_(rotation)
        torch.mul(self._key_rotation, self._scale, out=self._query_rotation)
        for layer, *kv_views in zip(self._layers, *cache.next_position_views(), strict=True):
            layer.run(mask, *kv_views)
        self._compute_row_norms()
        return torch.div(self._x, self._row_norms).mul_(self._norm_weight)
