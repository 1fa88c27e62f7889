"""Decode step on a CPU in fp32, on preallocated buffers.

At 43M parameters a step is some 200 small operations, and launching one costs more than its
arithmetic. So everything that does not change between steps is prepared once ("captured", as in
CUDA graphs): buffers, views of them, and the choice of kernels. A step is then a flat list of
callables without arguments, plus the few operations whose shapes depend on how full the cache is.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode.fast.fused_linear import BufferPool, InferenceRMSNorm, Op, prepare_row_norms
from model.decode.fast.layer import InferenceLayer, as_complex_pairs
from model.decode.kv_cache import KVCache


class _PreparedLayer:
    """The operations of one layer on x[R, D + 1], which they read and add to.

    The last column of `x` is the epsilon of the norms (see `InferenceRMSNorm.eps_column`).
    """

    def __init__(
        self,
        layer: InferenceLayer,
        x: Tensor,
        query_rotation: Tensor,
        kv_rotations: Tensor,
        buffers: BufferPool,
    ) -> None:
        rows, num_heads, num_kv_heads = len(x), layer.num_heads, layer.num_kv_heads
        head_dim = layer.head_dim
        # Before attention: norm and qkv product, then the rotated queries in a buffer of their own.
        self._pre_attention_ops, qkv = layer.qkv.prepare(x, buffers)
        pairs = as_complex_pairs(qkv.view(rows, -1, head_dim))
        queries = buffers.get("queries", (rows, num_heads, head_dim))
        self._pre_attention_ops.append(
            partial(torch.mul, pairs[:, :num_heads], query_rotation, out=as_complex_pairs(queries))
        )
        # Keys and values side by side, complex[2, R, K, d / 2]: one multiplication rotates the
        # keys, leaves the values as they are (factor 1) and writes both into the cache.
        new_kv = pairs[:, num_heads:].unflatten(1, (2, num_kv_heads))
        self._new_kv = new_kv.transpose(0, 1)
        self._kv_rotations = kv_rotations
        # Query heads that share a key-value head are the rows of one batched product.
        self._queries = queries.view(rows * num_kv_heads, -1, head_dim)
        self._attention_out = buffers.get("attention_out", self._queries.shape)

        # After attention: output projection, norm and gate/up product, SwiGLU, down projection.
        mlp_ops, gate_up = layer.gate_up.prepare(x, buffers)
        gate, up = gate_up.chunk(2, -1)
        mlp_hidden = buffers.get("mlp_hidden", gate.shape)
        self._post_attention_ops: list[Op] = [
            *layer.out.prepare(x[:, :-1], self._attention_out.view(rows, -1), buffers),
            *mlp_ops,
            partial(F.silu, gate, inplace=True),
            partial(torch.mul, gate, up, out=mlp_hidden),
            *layer.down.prepare(x[:, :-1], mlp_hidden, buffers),
        ]

    def run(self, bias: Tensor | None, kv_out: Tensor, keys: Tensor, values: Tensor) -> None:
        """Run the layer; the arguments behind `bias` are `KVCache.next_position_views` of it.

        `kv_out`, complex[2, R, K, d / 2], is where the new keys and values are written, keys
        [R * K, d, S] and values[R * K, S, d] include them, and bias[R * K, 1, S] is added to the
        scores.
        """
        for op in self._pre_attention_ops:
            op()
        torch.mul(self._new_kv, self._kv_rotations, out=kv_out)
        if bias is None:
            scores = torch.bmm(self._queries, keys)
        else:
            scores = torch.baddbmm(bias, self._queries, keys)
        torch.bmm(scores.softmax(-1), values, out=self._attention_out)
        for op in self._post_attention_ops:
            op()


class PreparedDecodeStep:
    """All layers and the final norm, captured for R rows.

    Every step reuses the same buffers, so an instance must be used by one thread only.
    """

    def __init__(
        self, layers: Sequence[InferenceLayer], norm: InferenceRMSNorm, batch_size: int
    ) -> None:
        head_dim, hidden_size = layers[0].head_dim, len(norm.weight)
        self.batch_size = batch_size
        self._norm_weight = norm.weight
        self._x_with_eps = torch.full((batch_size, hidden_size + 1), norm.eps_column)
        self._x = self._x_with_eps[:, :-1]
        # The scale of attention scores is multiplied into the rotation of the queries.
        self._score_scale = head_dim**-0.5
        self._query_rotation = torch.empty(batch_size, 1, head_dim // 2, dtype=torch.complex64)
        # For keys the rotation of the step, for values always 1: see `_PreparedLayer`.
        kv_rotations = torch.ones(2, batch_size, 1, head_dim // 2, dtype=torch.complex64)
        self._key_rotation = kv_rotations[0]
        buffers = BufferPool()
        self._row_norms = buffers.get("row_norms", (batch_size, 1))
        self._compute_row_norms = prepare_row_norms(self._x_with_eps, self._row_norms)
        self._layers = [
            _PreparedLayer(layer, self._x_with_eps, self._query_rotation, kv_rotations, buffers)
            for layer in layers
        ]

    def run(self, x: Tensor, rotation: Tensor, bias: Tensor | None, cache: KVCache) -> Tensor:
        """Return the normalized hidden states[R, D] of the new position, in new memory.

        x[R, D] are embeddings, rotation complex[R or 1, 1, d / 2] the angles of the positions, and
        bias[R * K, 1, S] is added to the attention scores. Writes keys and values into the cache;
        the caller advances its length.
        """
        self._x.copy_(x)
        self._key_rotation.copy_(rotation)
        torch.mul(self._key_rotation, self._score_scale, out=self._query_rotation)
        for layer, *kv_views in zip(self._layers, *cache.next_position_views(), strict=True):
            layer.run(bias, *kv_views)
        self._compute_row_norms()
        return torch.div(self._x, self._row_norms).mul_(self._norm_weight)
