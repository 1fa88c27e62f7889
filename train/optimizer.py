"""The optimizers: Muon for hidden matrices, AdamW for the other parameters."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from train.distributed import full_tensor, shard_like
from train.options import OptimizerOptions

ADAMW_EPSILON = 1e-8
# Coefficients of the Newton-Schulz iteration, its number of steps, and the smallest norm that it
# divides by (Jordan et al. 2024).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_EPSILON = 1e-7


class Optimizer(ABC):
    """Updates parameters by their gradients; has hyperparameters per group, state per parameter.

    It has the parts of `torch.optim.Optimizer` that training uses. That class imports the compiler
    of PyTorch at its first use, which takes seconds of every start of training.
    """

    def __init__(self, param_groups: list[dict[str, Any]]) -> None:
        """Each group has the list `params` and the hyperparameters of the update, `lr` among them.

        The field `peak_lr`, which the learning-rate schedule multiplies, is added.
        """
        self.param_groups = [{**group, "peak_lr": group["lr"]} for group in param_groups]
        # Parameter → name of the field → tensor; empty before the first step.
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    @abstractmethod
    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters of one group by their gradients."""


class AdamW(Optimizer):
    """AdamW (Loshchilov & Hutter 2019), by PyTorch's fused kernel.

    Groups have `lr`, `betas` and `weight_decay`.
    """

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if parameter not in self.state:
                self.state[parameter] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [cast(Tensor, parameter.grad) for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=ADAMW_EPSILON,
        )


class Muon(Optimizer):
    """Muon (Jordan et al. 2024): orthogonalizes the momentum of a matrix.

    Groups have `lr`, `momentum` and `weight_decay`. A sharded matrix is orthogonalized whole, on
    every rank alike: the iteration multiplies it by itself many times, and on shards each product
    would need communication. Only one update is whole at a time.
    """

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for matrix in parameters:
            gradient = cast(Tensor, matrix.grad)
            state = self.state[matrix]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(gradient)
            buffer = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
            # Nesterov's momentum: the step that the next gradient would see.
            whole_update = full_tensor(gradient.lerp(buffer, momentum))
            update = orthogonalize(whole_update, choose_dtype(matrix.device))
            matrix.mul_(1 - lr * group["weight_decay"])
            # Tall matrices get longer steps: their updates have smaller elements.
            scale = math.sqrt(max(1.0, matrix.shape[0] / matrix.shape[1]))
            matrix.add_(shard_like(update, matrix), alpha=-lr * scale)


def orthogonalize(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return U V^T of the singular value decomposition U S V^T of `matrix`, roughly, in `dtype`.

    The Newton-Schulz iteration brings the singular values to between 0.7 and 1.2 or so (Jordan et
    al. 2024).
    """
    a, b, c = NEWTON_SCHULZ_COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    # The products are smallest for wide matrices.
    result = (matrix.T if is_tall else matrix).to(dtype, copy=True)
    # The iteration converges for singular values of at most 1.
    result.div_(result.norm().clamp(min=NEWTON_SCHULZ_EPSILON))
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = result @ result.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        result = torch.addmm(result, polynomial, result, beta=a)
    return result.T if is_tall else result


def choose_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype to orthogonalize in: bf16, or fp32 on a CPU that cannot multiply in bf16.

    It would emulate bf16, which takes 2 to 40 times as long as fp32.
    """
    if device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        return torch.float32
    return torch.bfloat16


class FixedWeights:
    """Parts of weights that training leaves as they are."""

    def __init__(self, masks: dict[Tensor, Tensor]) -> None:
        """Keep the values that the weights have now where their masks are True.

        Weights that need no gradient are left out.
        """
        self._weights = [
            (weight, shard_like(mask, weight), weight.detach().clone())
            for weight, mask in masks.items()
            if weight.requires_grad
        ]

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Set the gradients of these parts to zero: they would count in the gradient norm."""
        for weight, mask, _ in self._weights:
            if weight.grad is not None:
                weight.grad.copy_(torch.where(mask, 0.0, weight.grad))

    @torch.no_grad()
    def restore(self) -> None:
        """Undo the weight decay of these parts."""
        for weight, mask, values in self._weights:
            weight.copy_(torch.where(mask, values, weight))


def build_optimizers(model: nn.Module, options: OptimizerOptions) -> dict[str, Optimizer]:
    """Return the optimizers of the trainable parameters by name: "adamw" and, if used, "muon".

    AdamW updates the embedding, the head and the norms. It also updates the two low-rank matrices
    of a LoRA adapter, as in the LoRA paper: Muon was not measured on them here.
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
    adamw_hyperparameters = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    # The vectors are the scales of the norms. They start at 1, and weight decay would pull them to
    # 0.
    optimizers: dict[str, Optimizer] = {
        "adamw": AdamW(
            [
                {
                    "params": adamw_matrices,
                    "weight_decay": options.weight_decay,
                    **adamw_hyperparameters,
                },
                {"params": vectors, "weight_decay": 0.0, **adamw_hyperparameters},
            ]
        )
    }
    if muon_matrices:
        muon_group = {
            "params": muon_matrices,
            "lr": options.muon_lr,
            "momentum": options.momentum,
            "weight_decay": options.weight_decay,
        }
        optimizers["muon"] = Muon([muon_group])
    return optimizers
