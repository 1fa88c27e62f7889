"""Which optimiser moves which weights.

Muon (Jordan et al. 2024; `torch.optim.Muon`) orthogonalises the momentum of a matrix and suits the hidden matrices;
the embedding, the head and the norms stay with AdamW (Loshchilov & Hutter 2019). So do the two thin matrices of an
adapter, as in the paper: it is their product that acts, and Muon on the factors was not measured here.
"""

import torch
from torch import nn

from train.distributed import ShardedMuon, is_sharded
from train.options import OptimizerOptions


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
