"""Choose how attention is computed: by strips, by variable-length kernels, or by PyTorch's own."""

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention.blocks import AttentionFunction
from model.attention.segments import Offsets, Segments, whole_rows

# In training on a CPU, strips are faster than PyTorch's kernel for whole rows from this length and
# this head_dim on (docs/training.md).
MIN_STRIPS_LENGTH = 512
MIN_STRIPS_HEAD_DIM = 32
# FlashAttention's kernels for GPUs take heads up to this size, a multiple of 8.
_MAX_KERNEL_HEAD_DIM = 256


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | Segments | None) -> Tensor:
    """Attend from q[B, T, H, d] to k and v[B, S, K, d] -> [B, T, H, d], in the dtype of `q`.

    The mask is bool[B or 1, 1, T, S] (True: may attend), or the segments of the rows (S = T), or
    None: the queries are those of the last T keys, and a position sees itself and what is before
    it. Keys and values from a cache may have a narrower dtype, in which attention is computed then.
    """
    dtype = q.dtype
    q = q.to(k.dtype)
    if isinstance(mask, Segments):
        if mask.offsets is not None and _has_variable_length_kernel(q):
            return _attend_variable_length(q, k, v, mask.offsets)
        if q.device.type == "cpu":
            return _attend_in_strips(q, k, v, mask)
        # The strips are thousands of small operations, which take a GPU longer than a mask.
        make_mask = Segments.mask_on
        if torch.compiler.is_compiling():
            make_mask = _exclude_from_compile(make_mask)
        return attend(q, k, v, make_mask(mask, q.device))
    length = q.shape[1]
    # A single new position may attend to everything before it: no mask is needed.
    is_causal = mask is None and length > 1
    if is_causal and k.shape[1] != length:
        return _attend_after_past(q, k, v).to(dtype)
    if is_causal and _are_strips_faster(q):
        return _attend_in_strips(q, k, v, whole_rows(len(q), length))
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=is_causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2).to(dtype)


def _attend_after_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from q[B, T, H, d] to k and v[B, S, K, d], S > T; without gradients.

    No mask of T x S exists: on a CPU the past and the new positions are attended to separately.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    is_grouped_query = q.shape[1] != k.shape[1]
    length, num_past = q.shape[2], k.shape[2] - q.shape[2]
    if q.device.type != "cpu":
        # Imported here because it imports the compiler.
        from torch.nn.attention.bias import causal_lower_right

        mask = causal_lower_right(length, k.shape[2])
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=is_grouped_query)
        return out.transpose(1, 2)
    # The kernel behind F.scaled_dot_product_attention, which also returns the logarithm of the sum
    # of exp(score) of each query. It has no grouped queries.
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) if is_grouped_query else x for x in (k, v))
    past, past_sums = attention(q, k[:, :, :num_past], v[:, :, :num_past])
    new, new_sums = attention(q, k[:, :, num_past:], v[:, :, num_past:], is_causal=True)
    # The softmax over both is their mean, weighted by the sums.
    weight = torch.sigmoid(past_sums - new_sums).unsqueeze(-1)
    out = torch.lerp(new.to(weight.dtype), past.to(weight.dtype), weight)
    return out.to(q.dtype).transpose(1, 2)


def _are_strips_faster(q: Tensor) -> bool:
    """Return whether strips are faster than PyTorch's kernel for whole rows, of q[B, T, H, d]."""
    if q.device.type != "cpu" or not q.requires_grad or torch.compiler.is_compiling():
        return False
    return q.shape[1] >= MIN_STRIPS_LENGTH and q.shape[3] >= MIN_STRIPS_HEAD_DIM


def _has_variable_length_kernel(q: Tensor) -> bool:
    """Return whether FlashAttention takes q[B, T, H, d], on a GPU that runs it."""
    is_narrow = q.dtype in (torch.bfloat16, torch.float16)
    return is_narrow and q.shape[3] % 8 == 0 and q.shape[3] <= _MAX_KERNEL_HEAD_DIM


def _attend_in_strips(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """See `AttentionFunction`. Under torch.compile it stays as it is, outside of the graph."""
    if torch.compiler.is_compiling():
        return _exclude_from_compile(AttentionFunction.apply)(q, k, v, segments)
    return AttentionFunction.apply(q, k, v, segments)


# Called late: as a decorator it would import the compiler.
_exclude_from_compile: Any = functools.cache(torch.compiler.disable)


def _attend_variable_length(q: Tensor, k: Tensor, v: Tensor, offsets: Offsets) -> Tensor:
    """Attend on a GPU by FlashAttention over all segments one after another."""
    # Imported here: on a CPU it is not needed.
    from torch.nn.attention.varlen import varlen_attn

    length = q.shape[1]
    keys, values = k.flatten(0, 1), v.flatten(0, 1)
    if offsets.key_indices is not None:
        keys, values = keys[offsets.key_indices], values[offsets.key_indices]
    # A segment and its prefix are no longer than a row; a bound that changed from batch to batch
    # would be compiled again and again. The window ends at the last query's own position: of more
    # keys than queries, the last ones are the queries' own.
    out = varlen_attn(
        q.flatten(0, 1),
        keys,
        values,
        offsets.queries,
        offsets.keys,
        length,
        length,
        window_size=(-1, 0),
        enable_gqa=q.shape[2] != k.shape[2],
    )
    assert isinstance(out, Tensor)  # and not with what `return_aux` would add
    return out.view(q.shape)
