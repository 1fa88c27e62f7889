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
        lambda x, weight: autograd_ops.RMSNormFunction.apply(x, weight, 1e-5, x.dtype),
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
    loss = autograd_ops.RMSNormFunction.apply(x, weight, 1e-5, x.dtype).square().sum()
    with TensorRecorder() as recorder:
        frozen = torch.autograd.grad(loss, x)[0]
    assert not recorder.operations_returning(weight.shape)
    weight.requires_grad_()
    loss = autograd_ops.RMSNormFunction.apply(x, weight, 1e-5, x.dtype).square().sum()
    assert torch.equal(frozen, torch.autograd.grad(loss, x)[0])
