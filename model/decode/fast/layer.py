"""A layer arranged for inference: the same function as `model.llama.Layer`, in fewer and larger steps.

Shapes as in `model.llama`: R rows, T new positions, N = R · T, K key-value heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode.fast.fused_linear import LinearAdd, RMSNormLinear
from model.decode.kv_cache import LayerKVCache
from model.llama import TransformerBlock


def as_complex_pairs(x: Tensor) -> Tensor:
    """A view of x[..., d] (fp32) as complex[..., d / 2]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def apply_complex_rotary(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn the pairs in x[R, T, H, d] by complex[(R,) T, 1, d / 2]."""
    return torch.view_as_real(as_complex_pairs(x.float()) * rotation).flatten(-2).to(x.dtype)


class InferenceLayer:
    """One layer's products and how its heads attend."""

    def __init__(
        self, layer: TransformerBlock, num_heads: int, num_kv_heads: int, head_dim: int
    ) -> None:
        attention, network = layer.self_attn, layer.mlp
        # The numbers that are turned together lie side by side, as a complex number does; scores do not change by it.
        device = layer.input_layernorm.weight.device
        output_order = torch.arange((num_heads + 2 * num_kv_heads) * head_dim, device=device).view(
            -1, 2, head_dim // 2
        )
        output_order = torch.cat(
            [
                output_order[: num_heads + num_kv_heads].transpose(1, 2).flatten(),
                output_order[num_heads + num_kv_heads :].flatten(),
            ]
        )
        self.qkv = RMSNormLinear(
            layer.input_layernorm,
            [attention.q_proj, attention.k_proj, attention.v_proj],
            output_order,
        )
        self.out, self.down = LinearAdd(attention.o_proj), LinearAdd(network.down_proj)
        self.gate_up = RMSNormLinear(
            layer.post_attention_layernorm, [network.gate_proj, network.up_proj]
        )
        # Whether `model.step` can bind it to memory.
        self.is_capturable = all(
            each.is_capturable for each in (self.qkv, self.out, self.gate_up, self.down)
        )
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.no_mask_bias = torch.zeros(
            1, 1, 1, device=device, dtype=layer.input_layernorm.weight.dtype
        )

    def forward(
        self, x: Tensor, rows: int, rotation: Tensor, mask: Tensor | None, cache: LayerKVCache
    ) -> Tensor:
        """x[N, D] → [N, D], in place."""
        qkv = self.qkv(x).view(rows, len(x) // rows, -1, self.head_dim)
        rotated_qk = apply_complex_rotary(qkv[:, :, : self.num_heads + self.num_kv_heads], rotation)
        keys, values = cache.append(
            rotated_qk[:, :, self.num_heads :].transpose(1, 2),
            qkv[:, :, self.num_heads + self.num_kv_heads :].transpose(1, 2),
        )
        attend = self._attend_one_position if qkv.shape[1] == 1 else self._attend
        self.out(x, attend(rotated_qk[:, :, : self.num_heads], keys, values, mask))
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(x, F.silu(gate).mul_(up))

    def _attend_one_position(
        self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None
    ) -> Tensor:
        """queries[R, 1, H, d]; `mask`[R · K, 1, S] is added to the scores. → [R, H · d]."""
        queries = queries.reshape(len(keys) * self.num_kv_heads, -1, self.head_dim)
        scores = torch.baddbmm(
            self.no_mask_bias if mask is None else mask,
            queries,
            keys.flatten(0, 1).mT,
            alpha=self.head_dim**-0.5,
        )
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(keys), -1)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """queries[R, T, H, d] → [N, H · d]."""
        if mask is None and keys.shape[2] != queries.shape[1]:
            raise ValueError(
                "several new positions behind a filled cache need a mask: plain causality would misalign them"
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
