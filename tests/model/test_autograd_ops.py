"""The custom autograd functions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model import autograd_ops
from tests.helpers.tensor_recorder import TensorRecorder


def random_input(*shape: int) -> Tensor:
    """Return random numbers in fp64 that require gradients."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


ANGLES = torch.linspace(0, 6, 10, dtype=torch.float64).view(5, 1, 2)
CASES: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...]]] = {
    "norm": (
        lambda x, weight: autograd_ops.RMSNormFunction.apply(x, weight, 1e-5),
        (random_input(2, 5, 4), random_input(4)),
    ),
    "rotary": (
        lambda x: autograd_ops.RotaryFunction.apply(x, ANGLES.cos(), ANGLES.sin()),
        (random_input(2, 5, 3, 4),),
    ),
    "swiglu": (
        lambda gate, up: autograd_ops.SwiGLUFunction.apply(gate, up),
        (random_input(3, 4), random_input(3, 5)[:, :4]),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_gradients_match_finite_differences(name: str) -> None:
    """Prevents a wrong term in a backward pass: the model would train, only worse."""
    function, inputs = CASES[name]
    assert torch.autograd.gradcheck(function, inputs)


def test_frozen_norm_propagates_the_input_gradient() -> None:
    """Prevents a gradient for a frozen weight, and another one for the layers below it."""
    x = torch.randn(4, 7, 32, requires_grad=True)
    weight = torch.rand(32)
    loss = autograd_ops.RMSNormFunction.apply(x, weight, 1e-5).square().sum()
    with TensorRecorder() as recorder:
        frozen = torch.autograd.grad(loss, x)[0]
    assert not recorder.operations_returning(weight.shape)
    weight.requires_grad_()
    loss = autograd_ops.RMSNormFunction.apply(x, weight, 1e-5).square().sum()
    assert torch.equal(frozen, torch.autograd.grad(loss, x)[0])


def exact_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Return the formula of RMSNorm, to differentiate."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def exact_rotation(x: Tensor) -> Tensor:
    """Return the formula of the rotary embedding, to differentiate."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = ANGLES.cos(), ANGLES.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


NARROW_CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], tuple[Tensor, ...]]] = {
    "norm": (
        lambda x, weight: autograd_ops.NarrowRMSNormFunction.apply(x, weight.float(), 1e-5),
        exact_norm,
        (random_input(2, 50, 64), random_input(64)),
    ),
    "rotary": (
        lambda x: autograd_ops.RotaryFunction.apply(
            x, ANGLES.cos().bfloat16(), ANGLES.sin().bfloat16()
        ),
        exact_rotation,
        (random_input(2, 5, 3, 4),),
    ),
    "swiglu": (
        lambda gate, up: autograd_ops.SwiGLUFunction.apply(gate, up),
        lambda gate, up: torch.nn.functional.silu(gate) * up,
        (random_input(30, 4), random_input(30, 5)[:, :4]),
    ),
}


@pytest.mark.parametrize("name", NARROW_CASES)
def test_bf16_is_rounded_at_the_ends_only(name: str) -> None:
    """Prevents sums in bf16, a result in fp32, and a wrong term of the formulas for bf16 alone."""
    function, formula, inputs = NARROW_CASES[name]
    narrow = [each.detach().bfloat16().requires_grad_() for each in inputs]
    exact = [each.detach().double().requires_grad_() for each in narrow]
    out, exact_out = function(*narrow), formula(*exact)
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    gradients = torch.autograd.grad(out, narrow, d_out)
    exact_gradients = torch.autograd.grad(exact_out, exact, d_out.double())
    assert out.dtype == torch.bfloat16
    for one, other in zip((out, *gradients), (exact_out, *exact_gradients), strict=True):
        # Three roundings at most: of the tables or of a product, and of the result.
        assert (one - other).norm() < 2 * 2**-9 * other.norm()
