"""The optimizers: Muon for hidden matrices, AdamW for the other parameters, AdamW in 8 bits."""

import math
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from model.bitsandbytes import load_functional
from train.distributed import full_tensor, shard_like
from train.options import OptimizerOptions

ADAMW_EPSILON = 1e-8
# Coefficients of the Newton-Schulz iteration, its number of steps, and the smallest norm that it
# divides by (Jordan et al. 2024).
NEWTON_SCHULZ_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
NEWTON_SCHULZ_EPSILON = 1e-7
# As in bitsandbytes: numbers of a moment that share a scale, the smallest number of elements whose
# moments are quantized, and the smallest whose moments are paged.
MOMENT_BLOCK_SIZE = 256
MIN_8BIT_ELEMENTS = 4096
MIN_PAGED_ELEMENTS = 100_000


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

    def fits_state(self, parameter: Tensor, field: str, tensor: Tensor) -> bool:
        """Return whether a tensor of a checkpoint can be the field of a parameter's state."""
        # Moments have the shape of their parameter; the step count of AdamW is a scalar.
        return tensor.shape in (parameter.shape, torch.Size([]))


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


class AdamW8bit(Optimizer):
    """AdamW with moments of 8 bits (Dettmers et al. 2022, arXiv:2110.02861), by bitsandbytes.

    Groups are those of AdamW; parameters may be fp32 or bf16. The state of a parameter is a step
    count, and for each moment uint8 numbers and the fp32 scales of their blocks. The moments of
    small parameters stay in fp32.
    """

    def __init__(self, param_groups: list[dict[str, Any]], *, is_paged: bool) -> None:
        """See `Optimizer`; if `is_paged`, moments on a GPU move to the host when it is full."""
        super().__init__(param_groups)
        self._is_paged = is_paged
        self._functional = load_functional()
        # The 256 numbers that uint8 stands for, by device: of the first moment, which has a sign,
        # and of the second.
        self._codes: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def fits_state(self, parameter: Tensor, field: str, tensor: Tensor) -> bool:
        """See `Optimizer.fits_state`."""
        if field.startswith("absmax"):
            return tensor.shape == (_num_blocks(parameter),)
        return super().fits_state(parameter, field, tensor)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state |= self._initial_state(parameter)
            for name in ("state1", "state2"):
                state[name] = self._to_paged(state[name], parameter.device)
            # A checkpoint puts it on the GPU; the CPU reads it.
            state["step"] = state["step"].cpu() + 1
            self._update_parameter(parameter, state, group)
        if self._is_paged and parameters[0].device.type == "cuda":
            # The GPU writes paged memory asynchronously, and a checkpoint is read by the CPU.
            torch.cuda.synchronize(parameters[0].device)

    def _initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first update."""
        device = parameter.device
        is_quantized = parameter.numel() >= MIN_8BIT_ELEMENTS
        dtype = torch.uint8 if is_quantized else torch.float32
        state = {"step": torch.zeros((), dtype=torch.int64)}
        for moment in ("1", "2"):
            state[f"state{moment}"] = torch.zeros_like(parameter, dtype=dtype)
            if is_quantized:
                state[f"absmax{moment}"] = torch.zeros(_num_blocks(parameter), device=device)
        return state

    def _to_paged(self, moment: Tensor, device: torch.device) -> Tensor:
        """Return a moment in paged memory, on its way to the GPU, or else as it is."""
        is_large = moment.numel() >= MIN_PAGED_ELEMENTS
        if not (self._is_paged and is_large and device.type == "cuda"):
            return moment
        # A new moment, or one of a checkpoint, is in ordinary memory.
        if not getattr(moment, "is_paged", False):
            paged = self._functional.get_paged(*moment.shape, dtype=moment.dtype, device=device)
            paged.copy_(moment)
            moment = paged
        self._functional.prefetch_tensor(moment)
        return moment

    def _update_parameter(
        self, parameter: Tensor, state: dict[str, Tensor], group: dict[str, Any]
    ) -> None:
        """Update one parameter and its state."""
        beta1, beta2 = group["betas"]
        arguments: dict[str, Any] = {
            "beta1": beta1,
            "beta2": beta2,
            "eps": ADAMW_EPSILON,
            "step": int(state["step"]),
            "lr": group["lr"],
            "state2": state["state2"],
            "weight_decay": group["weight_decay"],
        }
        gradient = cast(Tensor, parameter.grad).contiguous()
        if state["state1"].dtype == torch.float32:
            self._functional.optimizer_update_32bit(
                "adam", gradient, parameter, state["state1"], **arguments
            )
            return
        signed_code, unsigned_code = self._find_codes(parameter.device)
        self._functional.optimizer_update_8bit_blockwise(
            "adam",
            gradient,
            parameter,
            state["state1"],
            beta3=0.0,
            alpha=0.0,
            qmap1=signed_code,
            qmap2=unsigned_code,
            absmax1=state["absmax1"],
            absmax2=state["absmax2"],
            **arguments,
        )

    def _find_codes(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the numbers that uint8 stands for in the first and the second moment."""
        if device not in self._codes:
            signed = self._functional.create_dynamic_map(signed=True)
            unsigned = self._functional.create_dynamic_map(signed=False)
            self._codes[device] = signed.to(device), unsigned.to(device)
        return self._codes[device]


def _num_blocks(parameter: Tensor) -> int:
    """Return the number of scales of an 8-bit moment."""
    return math.ceil(parameter.numel() / MOMENT_BLOCK_SIZE)


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
        """Undo what weight decay, and Muon for parts of rows, changed in these parts."""
        for weight, mask, values in self._weights:
            weight.copy_(torch.where(mask, values, weight))


def build_optimizers(model: nn.Module, options: OptimizerOptions) -> dict[str, Optimizer]:
    """Return the optimizers of the trainable parameters by name.

    They are those used of "adamw", "muon" and "adamw8bit". AdamW updates the embedding, the head
    and the norms. It also updates the two low-rank matrices of a LoRA adapter, as in the LoRA
    paper: Muon was not measured on them here. AdamW in 8 bits updates all matrices but the
    embedding, whose rows have gradients of very different sizes in one block (Dettmers et al.
    2022).
    """
    muon_matrices = []
    adamw_matrices = []
    matrices_8bit = []
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
        elif options.is_8bit and "embed_tokens" not in name:
            matrices_8bit.append(parameter)
        else:
            adamw_matrices.append(parameter)
    adamw_hyperparameters = {"lr": options.lr, "betas": (options.beta1, options.beta2)}
    # The vectors are the scales of the norms. They start at 1, and weight decay would pull them to
    # 0.
    optimizers: dict[str, Optimizer] = {}
    # With an adapter in 8 bits there are none, and the loss scale of fp16 needs some.
    if adamw_matrices or vectors:
        matrices_group = {
            "params": adamw_matrices,
            "weight_decay": options.weight_decay,
            **adamw_hyperparameters,
        }
        vectors_group = {"params": vectors, "weight_decay": 0.0, **adamw_hyperparameters}
        optimizers["adamw"] = AdamW([matrices_group, vectors_group])
    if muon_matrices:
        muon_group = {
            "params": muon_matrices,
            "lr": options.muon_lr,
            "momentum": options.momentum,
            "weight_decay": options.weight_decay,
        }
        optimizers["muon"] = Muon([muon_group])
    if matrices_8bit:
        group_8bit = {
            "params": matrices_8bit,
            "weight_decay": options.weight_decay,
            **adamw_hyperparameters,
        }
        is_paged = options.name == "paged_adamw8bit"
        optimizers["adamw8bit"] = AdamW8bit([group_8bit], is_paged=is_paged)
    return optimizers
