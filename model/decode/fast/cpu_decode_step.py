"""Decode step on a CPU in fp32, on preallocated buffers.

At 43M parameters a step is some 200 small operations, and calling one takes longer than its
arithmetic. So everything that does not change between steps is prepared once, as in a CUDA graph:
buffers, views of them, and the choice of kernels. A step is then a list of callables without
arguments, plus the few operations whose shapes depend on the number of filled cache positions.

Shapes: R rows, T new positions per row, N = R * T, D hidden size, H query heads, K key-value heads,
d head_dim, S positions in the cache after the step.
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
    """The operations of one layer on x[N, D + 1], the residual stream, which they update in place.

    The last column of `x` is constant, the epsilon of the norms (`InferenceRMSNorm.eps_column`).
    """

    def __init__(
        self,
        layer: InferenceLayer,
        x: Tensor,
        query_rotation: Tensor,
        kv_rotations: Tensor,
        buffers: BufferPool,
    ) -> None:
        """Prepare the operations of `layer` on the buffer `x`.

        The caller writes complex query_rotation[R, 1, T, d / 2] and kv_rotations[2, R, 1, T, d / 2]
        before each step. `buffers` are shared by all layers.
        """
        rows, length = query_rotation.shape[0], query_rotation.shape[2]
        num_heads, num_kv_heads, head_dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        # The query heads of all positions that share a key-value head are the rows of one matrix in
        # a bmm: heads come before positions.
        queries = buffers.get(
            "queries", (rows, num_kv_heads, length, num_heads // num_kv_heads, head_dim)
        )
        # Before attention: norm and q, k, v projections, then the queries are rotated into a buffer
        # of their own.
        self._pre_attention_ops, qkv = layer.qkv.prepare(x, buffers)
        pairs = as_complex_pairs(qkv.view(rows, length, -1, head_dim))
        query_pairs = pairs[:, :, :num_heads].unflatten(2, (num_kv_heads, -1)).transpose(1, 2)
        self._pre_attention_ops.append(
            partial(
                torch.mul, query_pairs, query_rotation.unsqueeze(3), out=as_complex_pairs(queries)
            )
        )
        # Keys and values together, complex[2, R, K, T, d / 2]: one multiplication by `kv_rotations`
        # rotates the keys, leaves the values as they are (factor 1) and writes both into the cache.
        new_kv = pairs[:, :, num_heads:].unflatten(2, (2, num_kv_heads))
        self._new_kv = new_kv.permute(2, 0, 3, 1, 4)
        self._kv_rotations = kv_rotations
        # Rows that write different columns of the cache get them from here.
        self._rotated_kv = buffers.get("rotated_kv", (*self._new_kv.shape[:-1], head_dim))
        self._rotated_pairs = as_complex_pairs(self._rotated_kv)
        self._rotated_entries = self._rotated_kv.view(-1, head_dim)
        self._queries = queries.view(rows * num_kv_heads, -1, head_dim)
        self._attention_out = buffers.get("attention_out", self._queries.shape)

        # After attention: output projection, norm, gate and up projection, SwiGLU, down projection.
        self._post_attention_ops: list[Op] = []
        attention_out = self._attention_out.view(queries.shape).transpose(1, 2)
        if length > 1:
            # Positions before heads again; with one position the order is the same.
            by_position = buffers.get("attention_out_by_position", attention_out.shape)
            self._post_attention_ops.append(partial(by_position.copy_, attention_out))
            attention_out = by_position
        mlp_ops, gate_up = layer.gate_up.prepare(x, buffers)
        gate, up = gate_up.chunk(2, -1)
        mlp_hidden = buffers.get("mlp_hidden", gate.shape)
        self._post_attention_ops += [
            *layer.out.prepare(x[:, :-1], attention_out.view(len(x), -1), buffers),
            *mlp_ops,
            partial(F.silu, gate, inplace=True),
            partial(torch.mul, gate, up, out=mlp_hidden),
            *layer.down.prepare(x[:, :-1], mlp_hidden, buffers),
        ]

    def run(
        self,
        bias: Tensor | None,
        entries: Tensor | None,
        kv_out: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> None:
        """Run the layer on the buffer `x` of the constructor, in place.

        Args:
            bias: [R * K or 1, T * H / K or 1, S], added to the attention scores; None adds nothing.
            entries: `KVCache.next_entries`.
            kv_out: where the new keys and values are written: complex[2, R, K, T, d / 2], or the
                whole layer if there are `entries`.
            keys: [R * K, d, S], a view of the cache that includes the new positions.
            values: [R * K, S, d], likewise.

        The last three are this layer's `KVCache.next_views`.
        """
        for op in self._pre_attention_ops:
            op()
        if entries is None:
            torch.mul(self._new_kv, self._kv_rotations, out=kv_out)
        else:
            torch.mul(self._new_kv, self._kv_rotations, out=self._rotated_pairs)
            kv_out.index_copy_(0, entries, self._rotated_entries)
        if bias is None:
            scores = torch.bmm(self._queries, keys)
        else:
            scores = torch.baddbmm(bias, self._queries, keys)
        torch.bmm(scores.softmax(-1), values, out=self._attention_out)
        for op in self._post_attention_ops:
            op()


class PreparedDecodeStep:
    """A decode step of all layers and the final norm, prepared for fixed numbers of rows.

    Every step reuses the same buffers, so an instance must be used by one thread only.
    """

    def __init__(
        self,
        layers: Sequence[InferenceLayer],
        norm: InferenceRMSNorm,
        batch_size: int,
        num_positions: int,
    ) -> None:
        """Prepare `layers` and the final `norm` for `num_positions` new ones of each row."""
        head_dim, hidden_size = layers[0].head_dim, len(norm.weight)
        self._num_positions = num_positions
        self._norm_weight = norm.weight
        # The residual stream, and its view without the constant column of `InferenceRMSNorm`.
        self._x_with_eps = torch.full(
            (batch_size * num_positions, hidden_size + 1), norm.eps_column
        )
        self._x = self._x_with_eps[:, :-1]
        # The scale of attention scores is multiplied into the rotation of the queries, which
        # scales them without an operation of its own.
        self._score_scale = head_dim**-0.5
        rotation_shape = (batch_size, 1, num_positions, head_dim // 2)
        self._query_rotation = torch.empty(rotation_shape, dtype=torch.complex64)
        # [0] is the rotation of the keys, which changes with every step. [1] is the factor of the
        # values, which are not rotated: always 1.
        kv_rotations = torch.ones(2, *rotation_shape, dtype=torch.complex64)
        self._key_rotation = kv_rotations[0]
        buffers = BufferPool()
        self._row_norms = buffers.get("row_norms", (len(self._x), 1))
        self._compute_row_norms = prepare_row_norms(self._x_with_eps, self._row_norms)
        self._layers = [
            _PreparedLayer(layer, self._x_with_eps, self._query_rotation, kv_rotations, buffers)
            for layer in layers
        ]

    def run(self, x: Tensor, rotation: Tensor, bias: Tensor | None, cache: KVCache) -> Tensor:
        """Return the hidden states of the new positions after the final norm, a new tensor[N, D].

        Args:
            x: [N, D], the embeddings of the new ids.
            rotation: complex[R or 1, 1, T, d / 2], the rotations e^(i angle) of their positions.
            bias: [R * K or 1, T * H / K or 1, S], added to the attention scores; None adds nothing.
            cache: gets the new keys and values; the caller advances its length.
        """
        # The layers share these buffers: they read the rotations and update `_x` in place.
        self._x.copy_(x)
        self._key_rotation.copy_(rotation)
        torch.mul(self._key_rotation, self._score_scale, out=self._query_rotation)
        entries = cache.next_entries()
        for layer, *views in zip(self._layers, *cache.next_views(self._num_positions), strict=True):
            layer.run(bias, entries, *views)
        self._compute_row_norms()
        return torch.div(self._x, self._row_norms).mul_(self._norm_weight)
