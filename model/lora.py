"""LoRA (Hu et al. 2021, arXiv:2106.09685): train W + alpha / rank * B A, with W frozen.

The matrices B[out, rank] and A[rank, in] are much smaller than W[out, in]. Names of modules and
parameters are those that PEFT uses below its own prefix, so an adapter of one loads in the other.
Shapes of activations: B rows, T positions, D features.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.lora_options import LoraOptions


@dataclass(frozen=True)
class Adapter:
    """The description of an adapter: its options, and the base model whose weights it changes."""

    options: LoraOptions
    base: Path
    """The checkpoint folder that the base model was loaded from."""
    base_sha256: str
    """The sha256 of the base model's weights."""


class AdaptableModel(Protocol):
    """The interface of `Llama` that `attach_adapter` needs.

    `Llama` itself cannot be imported here, because `model.llama` imports this module.
    """

    adapter: Adapter | None

    def modules(self) -> Iterator[nn.Module]:
        """See `nn.Module.modules`."""

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """See `nn.Module.requires_grad_`."""


class PerRowDropout(nn.Dropout):
    """Dropout that draws from one random generator per row, once `seed_dropout` has set them.

    Results then do not depend on the other rows of a batch or on the number of processes.
    """

    row_generators: list[torch.Generator] | None = None

    def __init__(self, p: float) -> None:
        super().__init__(p)
        # torch.compile cannot compile drawing from a generator. The function is excluded here, and
        # only if there is dropout: as a decorator, torch.compiler.disable would import
        # torch._dynamo at every start, which takes more than a second.
        self._sample_keep_mask = (
            _exclude_from_compile(_sample_keep_mask) if p else _sample_keep_mask
        )

    def forward(self, x: Tensor) -> Tensor:
        """In training mode, zero elements of x[B, T, D] with probability p, and scale the rest."""
        if self.row_generators is None or not self.training:
            return super().forward(x)
        return x * self._sample_keep_mask(self.row_generators, x, self.p) / (1 - self.p)


# Cached, so that all layers share one wrapped function: each new one would be compiled again.
_exclude_from_compile = functools.cache(torch.compiler.disable)


def _sample_keep_mask(generators: list[torch.Generator], x: Tensor, p: float) -> Tensor:
    """Return which elements of x[B, T, D] to keep, bool[B, T, D]; row i uses generators[i]."""
    samples = [
        torch.rand(row.shape, generator=generator, device=x.device)
        for generator, row in zip(generators, x, strict=True)
    ]
    return torch.stack(samples) >= p


class LoraLinear(nn.Linear):
    """A linear layer with an adapter, around the weight and bias of the layer that it replaces."""

    def __init__(self, linear: nn.Linear, options: LoraOptions, generator: torch.Generator) -> None:
        """Take over the parameters of `linear`, and initialize A by drawing from `generator`."""
        # On the meta device no memory is allocated for the weights, which are replaced below.
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = options.alpha / options.rank
        self.dropout = PerRowDropout(options.dropout)
        device = linear.weight.device
        self.lora_A = nn.Linear(self.in_features, options.rank, bias=False, device="meta")
        self.lora_B = nn.Linear(options.rank, self.out_features, bias=False, device="meta")
        # PEFT's initialization. A is Kaiming-uniform with a = sqrt(5), which is uniform between
        # -1 / sqrt(in_features) and 1 / sqrt(in_features). B is zero, so that training begins with
        # the outputs of the base model. Drawn on the CPU, so that a seed gives equal weights on
        # every device.
        bound = 1 / math.sqrt(self.in_features)
        weight_a = torch.empty(options.rank, self.in_features)
        weight_a.uniform_(-bound, bound, generator=generator)
        weight_b = torch.zeros(self.out_features, options.rank, device=device)
        self.lora_A.weight = nn.Parameter(weight_a.to(device))
        self.lora_B.weight = nn.Parameter(weight_b)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[..., in_features] -> [..., out_features]."""
        low_rank = self.lora_A(self.dropout(x))
        return F.linear(x, self.weight, self.bias) + self.lora_B(low_rank) * self.scale


def attach_adapter(model: AdaptableModel, adapter: Adapter, seed: int) -> None:
    """Freeze a model's weights, and replace the layers that the adapter names by `LoraLinear`.

    The new matrices are initialized from `seed`.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    # Lists, because the modules are replaced during the iteration.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in adapter.options.targets and isinstance(child, nn.Linear):
                lora_linear = LoraLinear(child, adapter.options, generator)
                # A new module is in training mode, whatever the mode of the model.
                setattr(parent, name, lora_linear.train(child.training))
    model.adapter = adapter


def seed_dropout(model: nn.Module, seeds: list[int]) -> None:
    """Seed the adapter's dropout for row i of the next forward pass with seeds[i].

    Does nothing if the adapter has no dropout.
    """
    dropouts = [
        module for module in model.modules() if isinstance(module, PerRowDropout) and module.p > 0
    ]
    if not dropouts:
        return
    device = next(model.parameters()).device
    # One generator per row for all layers: each layer continues where the one before it stopped.
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    for dropout in dropouts:
        dropout.row_generators = generators


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapter's parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


@contextlib.contextmanager
def without_adapter(model: nn.Module) -> Iterator[None]:
    """Turn the adapter of a model off meanwhile, so that its layers compute what the base does."""
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    scales = [layer.scale for layer in layers]
    for layer in layers:
        layer.scale = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, scales, strict=True):
            layer.scale = scale
