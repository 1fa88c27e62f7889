"""Products in bf16 on a CPU: linear layers, and the narrow copies of their weights.

Autocast would cast a weight once in each forward pass, and hold the copy until the backward pass.
Here the copies are made once per step, for all of its micro-batches, in memory that is used again;
those of frozen weights are made once. The weights themselves stay fp32, and so do their gradients.
"""

from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def computes_narrow(x: Tensor) -> bool:
    """Return whether `x` is on a CPU under autocast to bf16, in eager mode.

    Then activations are bf16 from the embedding on, and the functions of this module and of
    `model.autograd_ops` take the place of autocast's conversions around single operations.
    """
    return (
        x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.compiler.is_compiling()
    )


class NarrowableLinear(nn.Linear):
    """A bias-free linear layer whose weight may have a copy in bf16 beside it."""

    # The copy that `NarrowWeights` made of the weight as it is now, or None.
    narrow_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[..., in_features] -> [..., out_features]."""
        if computes_narrow(x):
            return _NarrowLinear.apply(x, self.weight, self.narrow_weight)
        return super().forward(x)


class _NarrowLinear(torch.autograd.Function):
    """x[..., D] @ weight[M, D].T in bf16; the gradient of the weight is fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, narrow_weight: Tensor | None) -> Tensor:
        narrow_x = x.bfloat16()
        if narrow_weight is None:
            narrow_weight = weight.bfloat16()
        ctx.input_dtype = x.dtype
        ctx.save_for_backward(narrow_x if ctx.needs_input_grad[1] else None, narrow_weight)
        return F.linear(narrow_x, narrow_weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        (d_out,) = gradients
        d_weight = None
        if x is not None:
            # The products are summed in fp32, and rounded once.
            d_weight = (d_out.flatten(0, -2).T @ x.flatten(0, -2)).float()
        return (d_out @ weight).to(ctx.input_dtype), d_weight, None


class NarrowWeights:
    """The narrow copies of the weights of a model's linear layers.

    The copies exist for the layers within the context, where the weights must not change. Entering
    it casts the trainable ones.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = [
            module for module in model.modules() if isinstance(module, NarrowableLinear)
        ]
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def __enter__(self) -> None:
        if not self._copies:
            # Detached: a weight that is bf16 already is no copy, and a module has a parameter once.
            self._copies = [layer.weight.detach().bfloat16() for layer in self._layers]
        for layer, copy in zip(self._layers, self._copies, strict=True):
            if layer.weight.requires_grad:
                copy.copy_(layer.weight)
            layer.narrow_weight = copy

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for layer in self._layers:
            layer.narrow_weight = None
