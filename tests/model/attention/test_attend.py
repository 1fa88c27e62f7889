"""The choice between strips, variable-length kernels and PyTorch's own."""

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.attention.attend import attend
from model.attention.blocks import AttentionFunction
from model.attention.segments import make_offsets, whole_rows
from tests.model.attention.test_blocks import PACKED, SHARED, random_inputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_whole_rows_are_equal_on_both_paths(dtype: torch.dtype) -> None:
    """Prevents long rows in training from being computed in another way than by PyTorch."""
    q, k, v, _ = (x.to(dtype) for x in random_inputs(whole_rows(1, 600), 2, 1, 64))
    expected = attend(q, k, v, None)
    value = attend(q.requires_grad_(), k, v, None)
    assert value.grad_fn is not None and "AttentionFunction" in value.grad_fn.name()
    assert expected.grad_fn is None
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(value.detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("segments", [PACKED, SHARED])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_offsets_mean_what_segments_mean(
    segments: Any, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents other keys on a GPU, whose kernel is replaced here by one sequence at a time."""
    q, k, v, _ = (x.bfloat16() for x in random_inputs(segments, 4, kv_heads))

    def one_by_one(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_bounds: Tensor,
        k_bounds: Tensor,
        *rest: Any,
        **options: Any,
    ) -> Tensor:
        assert options["window_size"] == (-1, 0) and options["enable_gqa"] == (kv_heads < 4)
        outs = []
        for (start, stop), (first, last) in zip(
            q_bounds.unfold(0, 2, 1).tolist(), k_bounds.unfold(0, 2, 1).tolist(), strict=True
        ):
            assert last - first <= rest[1] and stop - start <= rest[0]
            # The last query sees the last key.
            mask = torch.ones(stop - start, last - first, dtype=torch.bool)
            mask = mask.tril(last - first - (stop - start))
            out = F.scaled_dot_product_attention(
                *(x.transpose(0, 1) for x in (q[start:stop], k[first:last], v[first:last])),
                attn_mask=mask,
                enable_gqa=kv_heads < 4,
            )
            outs.append(out.transpose(0, 1))
        return torch.cat(outs)

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", one_by_one)
    on_gpu = dataclasses.replace(segments, offsets=make_offsets(segments))
    value, expected = attend(q, k, v, on_gpu), attend(q, k, v, segments)
    for segment in segments.items:
        own = segment.row, slice(segment.start, segment.stop)
        torch.testing.assert_close(value[own], expected[own])


@pytest.mark.parametrize(
    ("dtype", "head_dim"), [(torch.float32, 8), (torch.bfloat16, 12), (torch.bfloat16, 264)]
)
def test_what_the_kernel_of_gpus_refuses_goes_by_strips(dtype: torch.dtype, head_dim: int) -> None:
    """Prevents a run on a GPU that ends in an error of FlashAttention, as for heads of 264."""
    q, k, v, _ = (x.to(dtype) for x in random_inputs(PACKED, 2, 1, head_dim))
    on_gpu = dataclasses.replace(PACKED, offsets=make_offsets(PACKED))
    torch.testing.assert_close(attend(q, k, v, on_gpu), attend(q, k, v, PACKED))


@pytest.mark.parametrize("segments", [PACKED, SHARED])
def test_mask_means_what_segments_mean(segments: Any) -> None:
    """Prevents other keys on a GPU that has no kernel for segments."""
    mask = segments.mask_on(torch.device("cpu"))
    assert segments.mask_on(torch.device("cpu")) is mask, "every layer would make it again"
    q, k, v, _ = random_inputs(segments)
    value, expected = attend(q, k, v, mask), attend(q, k, v, segments)
    for segment in segments.items:
        own = segment.row, slice(segment.start, segment.stop)
        torch.testing.assert_close(value[own], expected[own])


@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("num_new", [1, 2, 7])
def test_queries_are_those_of_the_last_keys(kv_heads: int, num_new: int) -> None:
    """Prevents a causal mask that is aligned with the wrong end."""
    q, k, v, _ = random_inputs(whole_rows(2, 8), kv_heads=kv_heads)
    last = attend(q[:, -num_new:], k, v, None)
    expected = AttentionFunction.apply(q, k, v, whole_rows(2, 8))[:, -num_new:]
    torch.testing.assert_close(last, expected)


def test_narrow_keys_are_attended_to_in_their_dtype() -> None:
    """Prevents a KV cache in bf16 that every call widens as a whole."""
    q, k, v, _ = random_inputs(whole_rows(1, 8))
    out = attend(q[:, 5:], k.bfloat16(), v.bfloat16(), None)
    assert out.dtype == q.dtype
    torch.testing.assert_close(out, attend(q[:, 5:], k, v, None), rtol=0.05, atol=0.05)
