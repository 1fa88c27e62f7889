"""The optimizers: Muon for hidden matrices, AdamW for the other parameters.

Muon (Jordan et al. 2024; `torch.optim.Muon`) orthogonalizes the momentum of a matrix. AdamW
(Loshchilov & Hutter 2019) updates the embedding, the head and the norms. It also updates the two
low-rank matrices of a LoRA adapter, as in the LoRA paper: Muon was not measured on them here.
"""

import torch
from torch import nn

from train.distributed import ShardedMuon, is_sharded
from train.options import OptimizerOptions


def build_optimizers(
    model: nn.Module, options: OptimizerOptions
) -> dict[str, torch.optim.Optimizer]:
    """Return the optimizers of the trainable parameters by name: "adamw" and, if used, "muon".

    Each parameter group has the field `peak_lr`, which the learning-rate schedule multiplies.
    """
    muon_matrices = []
    adamw_matrices = []
    vectors = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # The factors of a LoRA adapter are in the layers too, and AdamW trains them.
        is_hidden = ".layers." in name and ".lora_" not in name
        if parameter.dim() < 2:
            vectors.append(parameter)
        elif is_hidden and options.name == "muon":
            muon_matrices.append(parameter)
        else:
            adamw_matrices.append(parameter)
    # The vectors are the scales of the norms. They start at 1, and weight decay would pull them to
    # 0.
    groups = [
        {"params": adamw_matrices, "weight_decay": options.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    betas = (options.beta1, options.beta2)
    optimizers: dict[str, torch.optim.Optimizer] = {
        "adamw": torch.optim.AdamW(groups, lr=options.lr, betas=betas, fused=True)
    }
    if muon_matrices:
        # FSDP shards all matrices alike, so the first stands for all.
        muon_class = ShardedMuon if is_sharded(muon_matrices[0]) else torch.optim.Muon
        optimizers["muon"] = muon_class(
            muon_matrices,
            lr=options.muon_lr,
            weight_decay=options.weight_decay,
            momentum=options.momentum,
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers
