"""LoRA (Hu et al. 2021, arXiv:2106.09685): train W + alpha / rank * B A, with W frozen.

The matrices B[out, rank] and A[rank, in] are much smaller than W[out, in]. Names of modules and
parameters are those that PEFT uses below its own prefix, so an adapter of one loads in the other.
Shapes of activations: B rows, T positions, D features.
"""

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.lora_options import LoraOptions, Quantization
from model.nf4 import Nf4Linear
from model.precision import DTYPES


@dataclass(frozen=True)
class Adapter:
    """The description of an adapter: its options, and the base model whose weights it changes."""

    options: LoraOptions
    base: Path
    """The checkpoint folder that the base model was loaded from."""
    base_sha256: str
    """The sha256 of the base model's weights."""
    quantize: Quantization | None = None
    """How the weights of the base are quantized while the adapter is trained."""


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
    """Dropout that draws each row from a seed of its own, once `seed_dropout` has set them.

    Results then do not depend on the other rows of a batch or on the number of processes. Every
    forward pass with the same seeds drops the same elements, so that gradient checkpointing, which
    repeats the pass of a layer, repeats its dropout.
    """

    row_seeds: list[int] | None = None
    # Where the draws of each row go on, within `continued_dropout`.
    generators: list[torch.Generator] | None = None

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
        if self.row_seeds is None or not self.training:
            return super().forward(x)
        generators = self.generators or self.seeded_generators(x.device)
        return x * self._sample_keep_mask(generators, x, self.p) / (1 - self.p)

    def seeded_generators(self, device: torch.device) -> list[torch.Generator]:
        """Return a generator for each row. Raises ValueError if the rows have no seeds."""
        if self.row_seeds is None:
            raise ValueError("the rows have no seeds: call seed_dropout")
        return [torch.Generator(device).manual_seed(seed) for seed in self.row_seeds]


# Cached, so that all layers share one wrapped function: each new one would be compiled again.
_exclude_from_compile = functools.cache(torch.compiler.disable)


def _sample_keep_mask(generators: list[torch.Generator], x: Tensor, p: float) -> Tensor:
    """Return which elements of x[B, T, D] to keep, bool[B, T, D]; row i draws from generator i."""
    samples = [
        torch.rand(row.shape, generator=generator, device=x.device)
        for generator, row in zip(generators, x, strict=True)
    ]
    return torch.stack(samples) >= p


class LoraLinear(nn.Module):
    """A linear layer with an adapter beside it."""

    def __init__(
        self, base: nn.Linear | Nf4Linear, options: LoraOptions, generator: torch.Generator
    ) -> None:
        """Put an adapter beside `base`, and initialize A by drawing from `generator`."""
        super().__init__()
        self.base = base
        self.scale = options.alpha / options.rank
        self.dropout = PerRowDropout(options.dropout)
        device = base.packed.device if isinstance(base, Nf4Linear) else base.weight.device
        dtype = DTYPES[options.dtype]
        # On the meta device no memory is allocated for the weights, which are replaced below.
        self.lora_A = nn.Linear(base.in_features, options.rank, bias=False, device="meta")
        self.lora_B = nn.Linear(options.rank, base.out_features, bias=False, device="meta")
        # PEFT's initialization. A is Kaiming-uniform with a = sqrt(5), which is uniform between
        # -1 / sqrt(in_features) and 1 / sqrt(in_features). B is zero, so that training begins with
        # the outputs of the base model. Drawn on the CPU, so that a seed gives equal weights on
        # every device.
        bound = 1 / math.sqrt(base.in_features)
        weight_a = torch.empty(options.rank, base.in_features)
        weight_a.uniform_(-bound, bound, generator=generator)
        weight_b = torch.zeros(base.out_features, options.rank, device=device, dtype=dtype)
        self.lora_A.weight = nn.Parameter(weight_a.to(device, dtype))
        self.lora_B.weight = nn.Parameter(weight_b)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x[..., in_features] -> [..., out_features]."""
        # The activations decide what is computed in: beside a quantized base they are bf16, and
        # the matrices may be fp32.
        low_rank = F.linear(self.dropout(x), self.lora_A.weight.to(x.dtype)) * self.scale
        return self.base(x) + F.linear(low_rank, self.lora_B.weight.to(x.dtype))


def attach_adapter(model: AdaptableModel, adapter: Adapter, seed: int) -> None:
    """Freeze a model's weights, and replace the layers that the adapter names by `LoraLinear`.

    The new matrices are initialized from `seed`.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    # Lists, because the modules are replaced during the iteration.
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if name in adapter.options.targets and isinstance(child, nn.Linear | Nf4Linear):
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
    for index, dropout in enumerate(dropouts):
        # The seeds of a row's layers follow those of the row before it. The remainder fits the
        # signed 64-bit seed of `torch.Generator`.
        dropout.row_seeds = [(seed * len(dropouts) + index) % 2**63 for seed in seeds]


@contextlib.contextmanager
def continued_dropout(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Let each pass meanwhile draw on where the one before it ended, from the seeds of the rows.

    Passes over successive positions then drop, on a CPU, what one pass over all of them does; a GPU
    draws in another order. Raises ValueError if there is dropout without seeds.
    """
    dropouts = [
        child
        for module in modules
        for child in module.modules()
        if isinstance(child, PerRowDropout) and child.p > 0 and child.training
    ]
    for dropout in dropouts:
        dropout.generators = dropout.seeded_generators(device)
    try:
        yield
    finally:
        for dropout in dropouts:
            dropout.generators = None


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
