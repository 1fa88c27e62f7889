"""RMSNorm, rotary embedding and SwiGLU as single autograd functions.

Eager PyTorch keeps every intermediate of these memory-bound formulas for the backward pass. Written as one function
each, they keep only what the backward formula needs, which on a CPU is both less memory and less traffic. Under
`torch.compile` the plain formulas fuse by themselves, so the model uses these only in eager mode on a CPU.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class RMSNormFunction(torch.autograd.Function):
    """`x / rms(x) * weight` over the last dimension (Zhang & Sennrich 2019). x[..., D], weight[D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            .square_()
            .div_(x.shape[-1])
            .add_(eps)
            .rsqrt_()
        )
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        (dy,) = gradients
        normal = x * scale
        # Beside an adapter the weight is frozen.
        needs_weight_grad = ctx.needs_input_grad[1]
        dw = (
            torch.linalg.vecdot(dy.flatten(0, -2), normal.flatten(0, -2), dim=0)
            if needs_weight_grad
            else None
        )
        dn = dy * weight
        projection = torch.linalg.vecdot(dn, normal, dim=-1).unsqueeze(-1).div_(x.shape[-1])
        return dn.sub_(normal.mul_(projection)).mul_(scale), dw, None


class RotaryFunction(torch.autograd.Function):
    """Rotary position embedding in the rotate-half layout (Su et al. 2021). x[B, T, H, d], cos and sin[..., d / 2]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _apply_rotary(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        # The inverse of a rotation turns the other way.
        return _apply_rotary(gradients[0], cos, -sin), None, None


def _apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    out = torch.empty_like(x)
    low, high = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=low).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=high).addcmul_(first, sin)
    return out


class SwiGLUFunction(torch.autograd.Function):
    """`silu(gate) * up` (Shazeer 2020), keeping its two inputs and nothing else."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        (dy,) = gradients
        d_gate = torch.ops.aten.silu_backward(dy * up, gate)
        return d_gate, F.silu(gate).mul_(dy)
