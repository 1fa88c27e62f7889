"""A model arranged for inference: the same function as `Llama`, in fewer and larger steps.

At 43M a token costs as much in reading weights as in starting operations, so both are kept few: queries, keys and values
are one product, gate and up another; on a CPU their matrices lie transposed, which is how a product of few rows runs along
memory; attention of one new position is two batched products without a mask where no row is padded; residuals are added by
the products themselves. Nothing here waits for a GPU. Shapes as in `model.llama`: R rows, T new positions, N = R · T.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import Cache, LayerCache
from model.head import Head
from model.llama import Layer, Llama, RMSNorm
from model.quantize import Int8Linear, int8_product, is_plain

Product = Callable[[Tensor], Tensor]


def joined(projections: Sequence[nn.Module]) -> Product:
    """x[N, D] → the outputs of several projections of it side by side, [N, sum], in one product.

    Projections that are neither plain nor int8, such as adapted ones, are called as they are.
    """
    parts: Any = projections
    if all(map(is_plain, projections)):
        # On a GPU the layout makes no difference.
        columns = torch.cat([each.weight.detach() for each in parts]).t()
        columns = columns.contiguous() if columns.device.type == "cpu" else columns
        return lambda x: x @ columns
    if all(type(each) is Int8Linear for each in projections):
        values, scale = torch.cat([each.values for each in parts]), torch.cat([each.scale for each in parts])
        return lambda x: int8_product(x, values, scale)
    return lambda x: torch.cat([each(x) for each in projections], -1)


def adding(projection: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """(x, h) → x[N, D] with the projection of h added, in place."""
    if is_plain(projection):
        weight: Any = projection.weight
        columns = weight.detach().t()
        return lambda x, h: x.addmm_(h, columns)
    return lambda x, h: x.add_(projection(h))


class _Norm:
    """RMSNorm of x[N, D] in three small operations; the mean square is a product of each row with itself, in fp32."""

    def __init__(self, norm: RMSNorm) -> None:
        self._weight, self._size = norm.weight.detach(), norm.weight.shape[0]
        self._eps = torch.full((1, 1, 1), norm.eps, device=norm.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        wide = x.float()
        scale = torch.baddbmm(self._eps, wide.unsqueeze(1), wide.unsqueeze(2), alpha=1 / self._size).rsqrt_()
        return (wide * scale.squeeze(1)).to(x.dtype).mul_(self._weight)


class _Layer:
    """One layer's products and how its heads attend."""

    def __init__(self, layer: Layer, heads: int, groups: int, head_dim: int) -> None:
        attention, network = layer.self_attn, layer.mlp
        self.before, self.after = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj])
        self.out, self.down = adding(attention.o_proj), adding(network.down_proj)
        self.gate_up = joined([network.gate_proj, network.up_proj])
        self.heads, self.groups, self.head_dim = heads, groups, head_dim
        self.none = torch.zeros(1, 1, 1, device=self.before._weight.device, dtype=self.before._weight.dtype)

    def read(self, x: Tensor, rows: int, turn: tuple[Tensor, Tensor], mask: Tensor | None, cache: LayerCache) -> Tensor:
        """x[N, D] → [N, D], in place."""
        qkv = self.qkv(self.before(x)).view(rows, len(x) // rows, -1, self.head_dim)
        turned = _rotate(qkv[:, :, : self.heads + self.groups], *turn)
        keys, values = cache.append(
            turned[:, :, self.heads :].transpose(1, 2), qkv[:, :, self.heads + self.groups :].transpose(1, 2))
        attend = self._attend_one if qkv.shape[1] == 1 else self._attend
        self.out(x, attend(turned[:, :, : self.heads], keys, values, mask))
        gate, up = self.gate_up(self.after(x)).chunk(2, -1)
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


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x[R, T, H, d] by cos and sin[(R,) T, 1, d], of which `sin` is negative for the first half."""
    return torch.addcmul(x * cos, x.unflatten(-1, (2, -1)).flip(-2).flatten(-2), sin)


class Decoder:
    """Reads ids behind what a cache holds and says what follows. Made from a model's weights as they are now.

    Besides the model it keeps its wide matrices a second time, on a CPU also the head (see `model.head`).
    """

    def __init__(self, model: Llama) -> None:
        config, body = model.config, model.model
        shape = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self._groups = config.num_key_value_heads
        self._embed, self._norm = body.embed_tokens, _Norm(body.norm)
        self._layers = [_Layer(layer, *shape) for layer in body.layers]  # type: ignore[arg-type]
        cos, sin = body.rotary.table.to(body.norm.weight.dtype)
        self._turns = torch.stack([torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)]).unsqueeze(2)
        self.head = Head(model.lm_head)

    @torch.inference_mode()
    def read(self, ids: Tensor, cache: Cache, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Put ids[R, T] into the cache; the normalised hidden[R, D] of the last of them.

        `positions`[R, T] default to counting up from the cache's length; `mask`[R or 1, 1, T, S] (True: may look)
        replaces plain causality. The caller advances the cache's length.
        """
        rows, length = ids.shape
        start, stop = cache.length, cache.length + length
        cos, sin = self._turns[:, start:stop] if positions is None else self._turns[:, positions]
        if length == 1 and mask is not None:
            mask = torch.zeros_like(mask, dtype=cos.dtype).masked_fill_(~mask, -torch.inf)
            mask = mask[:, 0].expand(rows, self._groups, stop).reshape(-1, 1, stop)
        x = self._embed(ids.flatten())
        for index, layer in enumerate(self._layers):
            x = layer.read(x, rows, (cos, sin), mask, cache.layer(index))
        return self._norm(x.view(rows, length, -1)[:, -1])


def decoder_of(model: Llama) -> Decoder:
    """A decoder for the model's present weights.

    One is kept with a model in evaluation mode, and used again until the model is put back into training mode or its
    weights are written to. (Fused optimizers write without a trace, hence the mode.)
    """
    if model.training:
        return Decoder(model)
    state = [(each.data_ptr(), None if each.is_inference() else each._version) for each in model.parameters()]
    modules = [id(each) for each in model.modules()]
    if model.decoder is None or model.decoder[0] != (state, modules):
        model.decoder = ((state, modules), Decoder(model))
    return model.decoder[1]
