"""Products in bf16 with weights in fp32, and the copies that they read."""

import pytest
import torch
from torch import nn

from model.narrow_weights import NarrowableLinear, NarrowWeights, computes_narrow
from tests.helpers.tensor_recorder import TensorRecorder


def build_layers() -> nn.Sequential:
    """Return two linear layers with random weights, the second of them frozen."""
    torch.manual_seed(0)
    layers = nn.Sequential(*(NarrowableLinear(48, 48, bias=False) for _ in range(2)))
    layers[1].requires_grad_(False)
    return layers


def run(layers: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the output of the layers under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        return layers(x)


def test_gradients_are_those_of_rounded_factors() -> None:
    """Prevents a gradient of a narrow copy, which no optimizer reads, and sums in bf16."""
    (layer, _), x = build_layers(), torch.randn(3, 300, 48, requires_grad=True)
    out = run(layer, x)
    d_out = torch.randn(3, 300, 48).bfloat16()
    out.backward(d_out)
    wide_x, wide_weight = x.detach().bfloat16().double(), layer.weight.detach().bfloat16().double()
    d_weight = d_out.double().flatten(0, 1).T @ wide_x.flatten(0, 1)
    assert out.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == x.grad.dtype == torch.float32
    for one, other in (
        (out, wide_x @ wide_weight.T),
        (layer.weight.grad, d_weight),
        (x.grad, d_out.double() @ wide_weight),
    ):
        # One rounding of the result, of a relative 2^-9; a sum of 900 terms in bf16 would lose all.
        torch.testing.assert_close(one.double(), other, rtol=2**-8, atol=1e-4)


def test_weights_are_cast_once_a_step_and_frozen_ones_once() -> None:
    """Prevents a cast of all weights in each micro-batch, and of the base below an adapter."""
    layers, x = build_layers(), torch.randn(2, 48)
    weights = NarrowWeights(layers)
    with weights:
        pass
    with TensorRecorder() as recorder, weights:
        for _ in range(3):
            run(layers, x)
    assert len(recorder.operations_returning(torch.Size((48, 48)))) == 1


def test_copies_follow_the_weights_and_end_with_the_context() -> None:
    """Prevents a step with the weights before the last update, and an evaluation with a copy."""
    layers, x = build_layers(), torch.randn(2, 48)
    weights = NarrowWeights(layers)
    with weights:
        before = run(layers, x)
    # As a fused optimizer does it, without another version of the tensor.
    layers[0].weight.data.mul_(2)
    assert layers[0].narrow_weight is None and layers[1].narrow_weight is None
    with weights:
        torch.testing.assert_close(run(layers, x), 2 * before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_only_bf16_under_autocast_on_a_cpu_is_narrow(dtype: torch.dtype) -> None:
    """Prevents another arithmetic in fp32 training, and for fp16, whose gradients underflow."""
    x = torch.ones(1)
    assert not computes_narrow(x)
    with torch.autocast("cpu", dtype):
        assert computes_narrow(x) == (dtype == torch.bfloat16)
        assert not computes_narrow(x.to("meta"))


def test_weights_that_are_narrow_already_are_used_as_they_are() -> None:
    """Prevents an error in the first step beside a base of 4 bits, whose head is bf16."""
    layer = NarrowableLinear(48, 48, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    with NarrowWeights(layer):
        assert layer.narrow_weight is not None
        assert layer.narrow_weight.data_ptr() == layer.weight.data_ptr()
    assert layer.narrow_weight is None
