"""RMSNorm, rotary embedding and SwiGLU as custom autograd functions.

In eager mode PyTorch saves every intermediate of these memory-bound formulas for the backward pass.
A custom function saves only what its backward formula needs: less memory and less memory traffic,
which on a CPU is the time they take. Under `torch.compile` the plain formulas are fused anyway, so
`model.llama` uses these functions only in eager mode on a CPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNormFunction(torch.autograd.Function):
    """`x / rms(x) * weight` over the last dimension (Zhang & Sennrich 2019).

    x[..., D], weight[D].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        # inverse_rms[..., 1] = 1 / sqrt(mean(x^2) + eps). The vector norm sums the squares without
        # storing them, which x.square().mean() would do.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return (x * inverse_rms).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        (d_out,) = gradients
        normalized = x * inverse_rms
        d_weight = None
        # False when an adapter is trained: the weights of the norms are frozen then.
        if ctx.needs_input_grad[1]:
            flat_d_out, flat_normalized = d_out.flatten(0, -2), normalized.flatten(0, -2)
            d_weight = torch.linalg.vecdot(flat_d_out, flat_normalized, dim=0)
        # d_normalized = d_out * weight, and
        # d_x = inverse_rms * (d_normalized - normalized * mean(d_normalized * normalized)).
        d_normalized = d_out * weight
        mean_product = torch.linalg.vecdot(d_normalized, normalized, dim=-1)
        mean_product = mean_product.unsqueeze(-1).div_(x.shape[-1])
        d_x = d_normalized.sub_(normalized.mul_(mean_product)).mul_(inverse_rms)
        return d_x, d_weight, None


class NarrowRMSNormFunction(torch.autograd.Function):
    """RMSNorm of bf16 x[..., D] in fp32 inside, with a result in bf16; weight[D] of any dtype."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse_rms = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse_rms)
        return wide.mul_(inverse_rms).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse_rms = ctx.saved_tensors
        # The formulas of `RMSNormFunction`, with the sums as products of matrices and vectors: one
        # pass less, in another order of additions.
        d_out, wide = gradients[0].float(), x.float()
        product = (d_out * wide).flatten(0, -2)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (product.T @ inverse_rms.flatten()).to(weight.dtype)
        # d_x = inverse_rms * d_out * weight - x * inverse_rms^3 * mean(d_out * weight * x).
        mean = (product @ weight.float()).div_(x.shape[-1]).view(inverse_rms.shape)
        d_x = d_out.mul_(weight).mul_(inverse_rms)
        d_x.addcmul_(wide, mean * inverse_rms**3, value=-1)
        return d_x.to(x.dtype), d_weight, None


class RotaryFunction(torch.autograd.Function):
    """Rotary embedding, dimension i paired with i + d / 2 (Su et al. 2021).

    x[B, T, H, d], cos and sin[..., d / 2].
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # The transpose of a rotation is the rotation by the opposite angle.
        return _rotate(gradients[0], cos, -sin), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return x[B, T, H, d] with each pair (i, i + d / 2) rotated, in one new tensor."""
    first, second = x.chunk(2, dim=-1)
    if x.dtype == cos.dtype == torch.bfloat16:
        # PyTorch computes with bf16 fast only in long rows: the halves change places first.
        swapped = torch.empty_like(x)
        swapped_first, swapped_second = swapped.chunk(2, dim=-1)
        swapped_first.copy_(second)
        swapped_second.copy_(first)
        out = x * torch.cat((cos, cos), dim=-1)
        return out.addcmul_(swapped, torch.cat((-sin, sin), dim=-1))
    # The halves are written into the result directly; concatenating them would copy both.
    out = torch.empty_like(x)
    out_first, out_second = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)
    return out


class SwiGLUFunction(torch.autograd.Function):
    """`silu(gate) * up` (Shazeer 2020); saves only its two inputs and recomputes silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (d_out,) = gradients
        # PyTorch's own kernel for the derivative of silu, which has no public name.
        d_gate = torch.ops.aten.silu_backward(d_out * up, gate)
        return d_gate, F.silu(gate).mul_(d_out)
