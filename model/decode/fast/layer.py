"""A transformer block of the fast path: that of `model.llama`, in fewer and larger operations.

Shapes: R rows, T new positions, N = R * T, S positions in the cache after the call, H heads,
K key-value heads, d head_dim, D hidden size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode.fast.fused_linear import LinearAdd, RMSNormLinear
from model.decode.kv_cache import LayerKVCache
from model.llama import TransformerBlock


def as_complex_pairs(x: Tensor) -> Tensor:
    """Return a view of x[..., d] (fp32) as complex[..., d / 2]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def apply_complex_rotary(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the adjacent pairs of x[R, T, H, d] by complex[(R,) T, 1, d / 2]."""
    return torch.view_as_real(as_complex_pairs(x.float()) * rotation).flatten(-2).to(x.dtype)


class InferenceLayer:
    """One transformer block: fused products, and attention over a KV cache."""

    def __init__(
        self, layer: TransformerBlock, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        device = layer.input_layernorm.weight.device
        # The weights pair dimension i of a head with i + d / 2. Outputs of queries and keys are
        # reordered so that pairs lie side by side and are multiplied as complex numbers. Scores do
        # not change, as both sides of the dot product are reordered alike; values are left alone.
        num_rotated = num_heads + num_kv_heads
        outputs = torch.arange((num_rotated + num_kv_heads) * head_dim, device=device)
        pairs = outputs.view(-1, 2, head_dim // 2)
        output_order = torch.cat(
            [pairs[:num_rotated].transpose(1, 2).flatten(), pairs[num_rotated:].flatten()]
        )
        self.qkv = RMSNormLinear(
            layer.input_layernorm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            output_order,
        )
        self.out = LinearAdd(attention.o_proj)
        self.gate_up = RMSNormLinear(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj])
        self.down = LinearAdd(mlp.down_proj)
        products = (self.qkv, self.out, self.gate_up, self.down)
        self.can_prepare = all(product.can_prepare for product in products)
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self._zero_bias = torch.zeros(
            1, 1, 1, device=device, dtype=layer.input_layernorm.weight.dtype
        )

    def prefill(
        self, x: Tensor, rows: int, rotation: Tensor, mask: Tensor | None, cache: LayerKVCache
    ) -> Tensor:
        """Transform x[N, D] of T > 1 positions per row, in place. mask[R or 1, 1, T, S]."""
        queries, keys, values = self._project(x, rows, rotation, cache)
        return self._apply_output_and_mlp(x, self._attend(queries, keys, values, mask))

    def decode_step(
        self, x: Tensor, rotation: Tensor, bias: Tensor | None, cache: LayerKVCache
    ) -> Tensor:
        """Transform x[R, D] of one position per row, in place. bias[R * K, 1, S]."""
        queries, keys, values = self._project(x, len(x), rotation, cache)
        return self._apply_output_and_mlp(x, self._attend_one_position(queries, keys, values, bias))

    def _project(
        self, x: Tensor, rows: int, rotation: Tensor, cache: LayerKVCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return rotated queries[R, T, H, d] and all keys and values[R, K, S, d] of the cache."""
        qkv = self.qkv(x).view(rows, len(x) // rows, -1, self.head_dim)
        num_rotated = self.num_heads + self.num_kv_heads
        rotated = apply_complex_rotary(qkv[:, :, :num_rotated], rotation)
        queries, new_keys = rotated[:, :, : self.num_heads], rotated[:, :, self.num_heads :]
        keys, values = cache.append(
            new_keys.transpose(1, 2), qkv[:, :, num_rotated:].transpose(1, 2)
        )
        return queries, keys, values

    def _apply_output_and_mlp(self, x: Tensor, attention_out: Tensor) -> Tensor:
        self.out(x, attention_out)
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(x, F.silu(gate).mul_(up))

    def _attend_one_position(
        self, queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attend from one position per row, queries[R, 1, H, d] -> [R, H * d]."""
        # The H / K query heads that share a key-value head are the rows of one product.
        queries = queries.reshape(len(keys) * self.num_kv_heads, -1, self.head_dim)
        scores = torch.baddbmm(
            self._zero_bias if bias is None else bias,
            queries,
            keys.flatten(0, 1).mT,
            alpha=self.head_dim**-0.5,
        )
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(keys), -1)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attend from several positions per row, queries[R, T, H, d] -> [N, H * d]."""
        if mask is None and keys.shape[2] != queries.shape[1]:
            raise ValueError(
                "several new positions behind a filled cache need a mask: a causal mask would be "
                "aligned with the start of the cache"
            )
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=self.num_heads != self.num_kv_heads,
        )
        return out.transpose(1, 2).reshape(-1, self.num_heads * self.head_dim)
