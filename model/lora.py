"""LoRA (Hu et al. 2021, arXiv:2106.09685): a frozen matrix W learns as W + alpha / rank · B A, two thin matrices beside it.

Module and parameter names are those that PEFT has inside its own prefix, so an adapter of one is an adapter of the other.
"""

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from common.options import CommaSeparated, Options

if TYPE_CHECKING:
    from model.llama import Llama

LoraTarget = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class LoraOptions(Options):
    """Options under `lora.`"""

    rank: int = Field(8, gt=0, le=4096, description="inner width of the two matrices")
    alpha: float = Field(16.0, gt=0, description="the product of the two is scaled by alpha / rank")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="share of the adapter's inputs that are dropped in training"
    )
    targets: Annotated[tuple[LoraTarget, ...], CommaSeparated] = Field(
        ("q_proj", "v_proj"),
        description="matrices of every layer that get an adapter, separated by commas",
    )

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, value: tuple[LoraTarget, ...]) -> tuple[LoraTarget, ...]:
        if not value:
            raise ValueError("is empty; name at least one matrix, such as q_proj")
        if twice := sorted({name for name in value if value.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named twice; once is enough")
        return value


@dataclass(frozen=True)
class Adapter:
    """What a model trains in place of its own weights, and whose weights those are."""

    options: LoraOptions
    base: Path
    """The checkpoint folder that the model was loaded from."""
    base_sha256: str
    """Of its weights."""


class PerRowDropout(nn.Dropout):
    """Dropout that draws for each row from a generator of the row's own, once `seed_dropout` has given it some: what is
    dropped in a row then does not depend on the rows that go through the model beside it, here or in another process.
    """

    row_generators: list[torch.Generator] | None = None

    def __init__(self, p: float) -> None:
        super().__init__(p)
        # What a generator draws is no part of a compiled program. That is said here and not by a decorator, because it imports
        # the compiler: more than a second at the start of every command.
        self._sample_keep_mask = (
            _exclude_from_compile(_sample_keep_mask) if p else _sample_keep_mask
        )

    def forward(self, x: Tensor) -> Tensor:
        """x[B, T, D], one generator for each of B, → the same, a share of it zero and the rest scaled up."""
        if self.row_generators is None or not self.training:
            return super().forward(x)
        return x * self._sample_keep_mask(self.row_generators, x, self.p) / (1 - self.p)


# One and the same function for all layers, or each would be compiled anew.
_exclude_from_compile = functools.cache(torch.compiler.disable)


def _sample_keep_mask(generators: list[torch.Generator], x: Tensor, p: float) -> Tensor:
    """What stays of x[B, T, D], as booleans."""
    samples = [
        torch.rand(row.shape, generator=own, device=x.device)
        for own, row in zip(generators, x, strict=True)
    ]
    return torch.stack(samples) >= p


class LoraLinear(nn.Linear):
    """A bias-free linear map with an adapter. Takes over the weight of the one it stands for, frozen or not."""

    def __init__(self, linear: nn.Linear, options: LoraOptions, generator: torch.Generator) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.scale, self.dropout = options.alpha / options.rank, PerRowDropout(options.dropout)
        device = linear.weight.device
        self.lora_A = nn.Linear(self.in_features, options.rank, bias=False, device="meta")
        self.lora_B = nn.Linear(options.rank, self.out_features, bias=False, device="meta")
        # Kaiming with PEFT's slope, that is uniform within one over the root of the width; B is zero, so that training
        # begins at the base. Drawn on the CPU, so that a seed means the same on every device.
        bound = 1 / math.sqrt(self.in_features)
        down = torch.empty(options.rank, self.in_features).uniform_(
            -bound, bound, generator=generator
        )
        self.lora_A.weight = nn.Parameter(down.to(device))
        self.lora_B.weight = nn.Parameter(
            torch.zeros(self.out_features, options.rank, device=device)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x[..., in] → [..., out]."""
        low_rank = self.lora_A(self.dropout(x))
        return F.linear(x, self.weight) + self.lora_B(low_rank) * self.scale


def attach_adapter(model: "Llama", adapter: Adapter, seed: int) -> None:
    """Freeze a model's weights and put a new adapter, drawn from the seed, beside those that its options name."""
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if name in adapter.options.targets and isinstance(child, nn.Linear):
                setattr(
                    parent,
                    name,
                    LoraLinear(child, adapter.options, generator).train(child.training),
                )
    model.adapter = adapter


def seed_dropout(model: "Llama", seeds: list[int]) -> None:
    """Have the adapter's dropout, if there is any, draw from seeds[i] in row i of the next forward pass."""
    if model.adapter is None or not model.adapter.options.dropout:
        return
    rows = [torch.Generator(model.lm_head.weight.device).manual_seed(seed) for seed in seeds]
    for module in model.modules():
        if isinstance(module, PerRowDropout):
            module.row_generators = rows


def adapter_tensors(model: "Llama") -> dict[str, Tensor]:
    """The adapter's parameters by name."""
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
