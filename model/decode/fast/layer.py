"""A layer arranged for inference: the same function as `model.llama.Layer`, in fewer and larger steps.

Shapes as in `model.llama`: R rows, T new positions, N = R · T, K key-value heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.decode.kv_cache import LayerCache
from model.llama import Layer
from model.decode.fast.fused_linear import AddedProduct, NormedProduct


def as_pairs(x: Tensor) -> Tensor:
    """A view of x[..., d] (fp32) as complex[..., d / 2]."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def rotated(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the pairs in x[R, T, H, d] by complex[(R,) T, 1, d / 2]."""
    return torch.view_as_real(as_pairs(x.float()) * turn).flatten(-2).to(x.dtype)


class DecoderLayer:
    """One layer's products and how its heads attend."""

    def __init__(self, layer: Layer, heads: int, groups: int, head_dim: int) -> None:
        attention, network = layer.self_attn, layer.mlp
        # The numbers that are turned together lie side by side, as a complex number does; scores do not change by it.
        device = layer.input_layernorm.weight.device
        order = torch.arange((heads + 2 * groups) * head_dim, device=device).view(-1, 2, head_dim // 2)
        order = torch.cat([order[: heads + groups].transpose(1, 2).flatten(), order[heads + groups :].flatten()])
        self.qkv = NormedProduct(layer.input_layernorm, [attention.q_proj, attention.k_proj, attention.v_proj], order)
        self.out, self.down = AddedProduct(attention.o_proj), AddedProduct(network.down_proj)
        self.gate_up = NormedProduct(layer.post_attention_layernorm, [network.gate_proj, network.up_proj])
        # Whether `model.step` can bind it to memory.
        self.bindable = all(each.bindable for each in (self.qkv, self.out, self.gate_up, self.down))
        self.heads, self.groups, self.head_dim = heads, groups, head_dim
        self.none = torch.zeros(1, 1, 1, device=device, dtype=layer.input_layernorm.weight.dtype)

    def read(self, x: Tensor, rows: int, turn: Tensor, mask: Tensor | None, cache: LayerCache) -> Tensor:
        """x[N, D] → [N, D], in place."""
        qkv = self.qkv(x).view(rows, len(x) // rows, -1, self.head_dim)
        turned = rotated(qkv[:, :, : self.heads + self.groups], turn)
        keys, values = cache.append(
            turned[:, :, self.heads :].transpose(1, 2), qkv[:, :, self.heads + self.groups :].transpose(1, 2))
        attend = self._attend_one if qkv.shape[1] == 1 else self._attend
        self.out(x, attend(turned[:, :, : self.heads], keys, values, mask))
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(x, F.silu(gate).mul_(up))

    def _attend_one(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """queries[R, 1, H, d]; `mask`[R · K, 1, S] is added to the scores. → [R, H · d]."""
        queries = queries.reshape(len(keys) * self.groups, -1, self.head_dim)
        scores = torch.baddbmm(
            self.none if mask is None else mask, queries, keys.flatten(0, 1).mT, alpha=self.head_dim**-0.5)
        return torch.bmm(scores.softmax(-1), values.flatten(0, 1)).view(len(keys), -1)

    def _attend(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """queries[R, T, H, d] → [N, H · d]."""
        if mask is None and keys.shape[2] != queries.shape[1]:
            raise ValueError("several new positions behind a filled cache need a mask: plain causality would misalign them")
        out = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys, values, attn_mask=mask, is_causal=mask is None,
            enable_gqa=self.heads != self.groups)
        return out.transpose(1, 2).reshape(-1, self.heads * self.head_dim)
