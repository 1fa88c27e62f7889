"""Which optimiser moves which weights.

Muon (Jordan et al. 2024; `torch.optim.Muon`) orthogonalises the momentum of a matrix and suits the hidden matrices;
the embedding, the head and the norms stay with AdamW (Loshchilov & Hutter 2019). So do the two thin matrices of an
adapter, as in the paper: it is their product that acts, and Muon on the factors was not measured here.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from common.options import Options
from train.distributed import ShardedMuon, is_sharded


class OptimizerOptions(Options):
    """Options under `optimizer.`"""

    name: Literal["muon", "adamw"] = Field(
        "muon",
        description="muon moves hidden matrices and AdamW the rest "
        "(embedding, head, norms, adapters); adamw moves everything",
    )
    lr: float = Field(8e-3, gt=0, lt=10, description="peak learning rate of AdamW")
    muon_lr: float = Field(
        4e-2, gt=0, lt=10, description="peak learning rate of Muon (its updates have unit size)"
    )
    weight_decay: float = Field(
        0.1, ge=0, lt=10, description="decoupled decay of matrices, in units of the rate"
    )
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment")
    momentum: float = Field(0.95, ge=0, lt=1, description="Muon's momentum")
    clip: float = Field(1.0, gt=0, description="gradients are scaled down to this norm")


def build_optimizers(
    model: nn.Module, options: OptimizerOptions
) -> dict[str, torch.optim.Optimizer]:
    """The optimisers of what a model trains, by name. Groups keep their peak rate under `peak_lr`, which schedules scale."""
    named = [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]
    muon_matrices = [
        p
        for n, p in named
        if p.dim() == 2 and ".layers." in n and ".lora_" not in n and options.name == "muon"
    ]
    chosen = {id(p) for p in muon_matrices}
    matrices = [p for _, p in named if p.dim() == 2 and id(p) not in chosen]
    vectors = [p for _, p in named if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups, lr=options.lr, betas=(options.beta1, options.beta2), fused=True
    )
    optimizers: dict[str, torch.optim.Optimizer] = {"adamw": adamw}
    if muon_matrices:
        optimizers["muon"] = (ShardedMuon if is_sharded(muon_matrices[0]) else torch.optim.Muon)(
            muon_matrices,
            lr=options.muon_lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
