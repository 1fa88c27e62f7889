"""A transformer block of the fast path: that of `model.llama`, in fewer and larger operations.

Shapes: R rows, T new positions, N = R * T, S positions in the cache after the call, H query heads,
K key-value heads, d head_dim, D hidden size. `rotation` holds complex numbers e^(i angle), by which
RoPE multiplies a pair of dimensions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention.attend import attend
from model.decode.fast.fused_linear import LinearAdd, RMSNormLinear
from model.decode.kv_cache import LayerKVCache
from model.llama import TransformerBlock


def as_complex_pairs(x: Tensor) -> Tensor:
    """Return a view of x[..., d] (fp32) as complex[..., d / 2]: dimensions 2j and 2j + 1 pair."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def apply_complex_rotary(x: Tensor, rotation: Tensor) -> Tensor:
    """Apply RoPE to x[R, T, H, d], whose dimensions 2j and 2j + 1 are a pair.

    `rotation` is complex[T, 1, d / 2] or complex[R, T, 1, d / 2]. In `model.llama` dimensions i and
    i + d / 2 are a pair; `InferenceLayer` reorders queries and keys to make them adjacent.
    """
    rotated_pairs = as_complex_pairs(x.float()) * rotation
    return torch.view_as_real(rotated_pairs).flatten(-2).to(x.dtype)


class InferenceLayer:
    """One transformer block: fused linear layers, and attention over a KV cache."""

    def __init__(
        self, layer: TransformerBlock, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None:
        """Rearrange the weights of `layer`, which has H = num_heads and K = num_kv_heads."""
        attention, mlp = layer.self_attn, layer.mlp
        device = layer.input_layernorm.weight.device
        # RoPE rotates dimension i of a head together with i + d / 2. The rows of the matrices of
        # queries and keys are reordered so that such pairs are adjacent in the outputs, which can
        # then be multiplied as complex numbers. Attention scores do not change, because both sides
        # of the dot product are reordered alike. Values are not rotated and keep their order.
        num_rotated = num_heads + num_kv_heads
        row_indices = torch.arange((num_rotated + num_kv_heads) * head_dim, device=device)
        # [heads of q, then of k, then of v; first or second half of a head; d / 2]
        half_indices = row_indices.view(-1, 2, head_dim // 2)
        rotated_order = half_indices[:num_rotated].transpose(1, 2).flatten()
        output_order = torch.cat([rotated_order, half_indices[num_rotated:].flatten()])
        self.qkv = RMSNormLinear(
            layer.input_layernorm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            output_order,
        )
        self.out = LinearAdd(attention.o_proj)
        self.gate_up = RMSNormLinear(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        self.down = LinearAdd(mlp.down_proj)
        linears = (self.qkv, self.out, self.gate_up, self.down)
        # False for LoRA layers, which are run as they are.
        self.can_prepare = all(linear.can_prepare for linear in linears)
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        # baddbmm scales the attention scores in the kernel that computes them, but always adds a
        # first operand: this zero, broadcast, if there is no bias.
        self._zero_bias = torch.zeros(
            1, 1, 1, device=device, dtype=layer.input_layernorm.weight.dtype
        )

    def prefill(self, x: Tensor, rows: int, rotation: Tensor, cache: LayerKVCache) -> Tensor:
        """Transform x[N, D] of T > 1 positions per row, in place; return it.

        `rotation` is complex[T, 1, d / 2]. A position sees itself and those before it, which
        include all that the cache had.
        """
        queries, keys, values = self._project(x, rows, rotation, cache)
        return self._apply_output_and_mlp(x, self._attend(queries, keys, values))

    def decode_step(
        self, x: Tensor, rotation: Tensor, bias: Tensor | None, cache: LayerKVCache
    ) -> Tensor:
        """Transform x[R, D] of one position per row, in place; return it.

        `rotation` is complex[R or 1, 1, 1, d / 2]. `bias`[R * K, 1, S] is added to the scores. If
        the cache is narrower than `x`, it is a bool mask[R or 1, 1, 1, S] (True: may attend).
        """
        queries, keys, values = self._project(x, len(x), rotation, cache)
        if keys.dtype != queries.dtype:
            # A product of narrow queries and keys would round the scores to their dtype.
            out = self._attend(queries, keys, values, bias)
        else:
            out = self._attend_one_position(queries, keys, values, bias)
        return self._apply_output_and_mlp(x, out)

    def _project(
        self, x: Tensor, rows: int, rotation: Tensor, cache: LayerKVCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append the keys and values of x[N, D] to the cache.

        Returns the rotated queries[R, T, H, d], and all keys and values in the cache, [R, K, S, d].
        """
        # [R, T, H + 2K, d]: heads of queries, of keys and of values in turn.
        qkv = self.qkv(x).view(rows, len(x) // rows, -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = apply_complex_rotary(qkv[:, :, :num_rotated], rotation)
        queries, new_keys = rotated[:, :, : self.num_heads], rotated[:, :, self.num_heads :]
        keys, values = cache.append(
            new_keys.transpose(1, 2), qkv[:, :, num_rotated:].transpose(1, 2)
        )
        return queries, keys, values

    def _apply_output_and_mlp(self, x: Tensor, attention_out: Tensor) -> Tensor:
        """Add the projection of attention_out[N, H * d], then the MLP, to x[N, D] in place."""
        self.out(x, attention_out)  # changes x
        # gate_up includes the RMSNorm that precedes the MLP.
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(x, F.silu(gate).mul_(up))

    def _attend_one_position(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attend from one position per row, queries[R, 1, H, d] -> [R, H * d]."""
        # The H / K query heads that share a key-value head are the rows of one matrix.
        queries = queries.reshape(len(keys) * self.num_kv_heads, -1, self.head_dim)
        scores = torch.baddbmm(
            self._zero_bias if bias is None else bias,
            queries,
            keys.flatten(0, 1).mT,
            alpha=self.head_dim**-0.5,
        )
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(keys), -1)

    def _attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Attend from the last T positions of each row, queries[R, T, H, d] -> [N, H * d]."""
        out = attend(queries, keys.transpose(1, 2), values.transpose(1, 2), mask)
        return out.reshape(-1, self.num_heads * self.head_dim)
