"""What is chosen once for a run's device, on a GPU by measuring, and then kept: micro-batch, loss path, precision."""

import sys
import time
from dataclasses import dataclass
from typing import Any, cast

import torch

from common.errors import UserError
from common.machine import resident_memory_bytes
from data.batching.collate import Batch
from model.llama import Llama, TransformerBlock
from model.loss import LossPath, available_loss_paths, linear_cross_entropy, loss_chunk_size
from model.precision import DTYPES, Precision, resolve_precision

# On a CPU more tokens at once gain nothing (docs/log.md) and cost memory.
CPU_MICRO_TOKENS = 4096
# Bounded memory, and needs no particular torch; bench/loss.py compares the paths. Fixed, because a measured choice would
# differ from run to run where two are close, and with it the last bits of the weights.
CPU_LOSS_PATH: LossPath = "chunked"
# Where all logits of a micro-batch, in fp32, fit in this, computing them at once is worth trying.
FULL_LOGITS_BYTES = 256 << 20
# What a process loads once training has begun: TensorBoard, and parts of torch at the first step (measured).
LAZY_IMPORT_BYTES = 120 << 20


@dataclass(frozen=True)
class ComputePlan:
    """How a run computes. Any of it may differ between machines; the order of data does not depend on it."""

    device: str
    precision: Precision
    compile: bool
    micro_rows: int
    loss_path: LossPath


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which forward passes run; weights and optimiser state stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def autotune(
    model: Llama,
    device: torch.device,
    *,
    precision: str,
    compile_mode: bool | str,
    micro_batch: int | str,
    rows_per_step: int,
    length: int,
) -> ComputePlan:
    """Choose what is not given. `rows_per_step` of `length` tokens make a step; the micro-batch divides them."""
    resolved_precision = resolve_precision(device, precision)
    wished = device.type == "cuda" if compile_mode == "auto" else bool(compile_mode)
    is_compiled = wished and can_compile(model)
    divisors = [n for n in range(1, rows_per_step + 1) if rows_per_step % n == 0]
    if isinstance(micro_batch, int):
        divisors = [max(n for n in divisors if n <= micro_batch)]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        micro_rows, path = _find_fastest_micro_batch(
            model, device, resolved_precision, divisors, length, is_compiled=is_compiled
        )
    else:
        name, path = "cpu", CPU_LOSS_PATH
        micro_rows = max(n for n in divisors if n == divisors[0] or n * length <= CPU_MICRO_TOKENS)
    return ComputePlan(name, resolved_precision, is_compiled, micro_rows, path)


def can_compile(model: Llama) -> bool:
    """Whether torch.compile works here, tried on one feed-forward block; where it does not, a warning says why.

    It needs a C++ compiler on a CPU; on a GPU Triton, a C compiler for it, and a card that is new enough.
    """
    block = cast(TransformerBlock, model.model.layers[0]).mlp
    weight = block.gate_proj.weight
    try:
        torch.compile(block)(
            torch.ones(2, weight.shape[1], device=weight.device, requires_grad=True)
        ).sum().backward()
    except (
        Exception
    ) as error:  # each part of the tool chain has its own, and the block itself cannot fail
        # The first paragraph is the reason; what follows is advice on debugging the compiler.
        reason = " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__
        print(
            f"warning: torch.compile does not work here, training goes on without it: {reason}",
            file=sys.stderr,
        )
        return False
    finally:
        model.zero_grad(set_to_none=True)
        torch.compiler.reset()
    return True


def _find_fastest_micro_batch(
    model: Llama,
    device: torch.device,
    precision: Precision,
    divisors: list[int],
    length: int,
    *,
    is_compiled: bool,
) -> tuple[int, LossPath]:
    """The micro-batch and the loss path that are fastest per row among those that fit, each pair tried as it will be used,
    from one row upwards until memory ends.
    """
    backbone = torch.compile(model.model) if is_compiled else model.model
    # Optimiser state (two numbers a weight) is not there yet, and fragmentation needs air.
    optimizer_state_bytes = 8 * count_trainable_parameters(model)
    best: tuple[int, LossPath] | None = None
    best_time = float("inf")
    for rows in divisors:
        fits = False
        for path in _candidate_loss_paths(rows * length, model.config.vocab_size, precision):
            try:
                seconds, memory = _benchmark_forward_backward(
                    model, backbone, device, precision, rows, length, path
                )
            except torch.cuda.OutOfMemoryError:
                continue
            finally:
                model.zero_grad(set_to_none=True)
            if best and memory + optimizer_state_bytes > 0.9 * _available_gpu_bytes(device):
                continue
            fits = True
            if seconds < 0.97 * best_time:
                best, best_time = (rows, path), seconds
        if not fits:
            break
    if is_compiled:
        # By now the program is one for any number of rows; the run's own number deserves its own.
        torch.compiler.reset()
    torch.cuda.empty_cache()
    if best is None:
        raise UserError(
            f"{divisors[0]} × {length} tokens at once do not fit in the GPU's memory: use a shorter "
            "--sequence_length, a smaller --model.preset or, where it is above 1, a smaller --micro_batch"
        )
    return best


def _candidate_loss_paths(tokens: int, vocab_size: int, precision: Precision) -> list[LossPath]:
    """The loss paths worth trying for so many positions at once."""
    fits = tokens * vocab_size * 4 <= FULL_LOGITS_BYTES
    return [path for path in available_loss_paths(DTYPES[precision]) if path != "full" or fits]


def _benchmark_forward_backward(
    model: Llama,
    backbone: Any,
    device: torch.device,
    precision: Precision,
    rows: int,
    length: int,
    path: LossPath,
) -> tuple[float, int]:
    """Seconds per row of a forward and backward pass on a GPU, and the most bytes that were in use."""
    ids = torch.randint(model.config.vocab_size, (rows, length), device=device)
    best = float("inf")
    for _ in range(3):  # the first turn compiles and warms up
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        with autocast(device, precision):
            hidden = backbone(ids, None, None, None).flatten(0, 1)
            loss = linear_cross_entropy(
                hidden, model.lm_head.weight, ids.flatten(), scale=0.0, path=path
            )
        loss.backward()
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best / rows, torch.cuda.max_memory_allocated(device)


def _available_gpu_bytes(device: torch.device) -> float:
    """Bytes that this process may have: its share of the card, and no more than others leave free."""
    free, total = torch.cuda.mem_get_info(device)
    # This function, unlike its neighbors, refuses a device without an index, which `--device cuda` is.
    index = torch.cuda.current_device() if device.index is None else device.index
    return min(
        total * torch.cuda.get_per_process_memory_fraction(index),
        free + torch.cuda.memory_reserved(device),
    )


def estimate_process_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Bytes a run is expected to need at its peak: on a GPU of the card, on a CPU of the whole process.

    On a CPU that is, besides `memory_needed`, what is resident now (interpreter, torch, mapped files, and the weights, which
    are counted once) and what is loaded later. What an evaluation or a checkpoint holds for a moment is not counted.
    """
    needed = estimate_training_bytes(model, compute_plan, length)
    if model.lm_head.weight.device.type != "cpu":
        return needed
    return needed - 4 * model.config.num_parameters + resident_memory_bytes() + LAZY_IMPORT_BYTES


def estimate_training_bytes(model: Llama, compute_plan: ComputePlan, length: int) -> int:
    """Bytes a run will need, by counting: weights, gradients, two moments, activations of one micro-batch, loss chunk.

    Frozen weights have neither gradients nor moments.

    Activations per token and layer are what the backward pass keeps: about 10 hidden and 3 feed-forward vectors.
    """
    config, dtype_bytes = model.config, 4 if compute_plan.precision == "fp32" else 2
    tokens = compute_plan.micro_rows * length
    per_token = config.num_hidden_layers * (10 * config.hidden_size + 3 * config.intermediate_size)
    rows = (
        tokens
        if compute_plan.loss_path == "full"
        else min(tokens, loss_chunk_size(model.lm_head.weight.device))
    )
    # In fp32 the chunked path writes the gradient over the logits.
    logits = (
        rows
        * config.vocab_size
        * (4 if compute_plan.loss_path == "chunked" and dtype_bytes == 4 else dtype_bytes + 4)
    )
    head = 4 * config.vocab_size * config.hidden_size if model.lm_head.weight.requires_grad else 0
    return (
        4 * config.num_parameters
        + 12 * count_trainable_parameters(model)
        + dtype_bytes * tokens * per_token
        + logits
        + head
    )


def count_trainable_parameters(model: Llama) -> int:
    """The numbers that training changes: all, or an adapter's."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def training_flops_per_token(model: Llama, length: float) -> tuple[float, float]:
    """Floating point operations to train on one position of a row: below the head, and in the head.

    A frozen matrix costs four per weight instead of six: its own gradient is not made.
    """
    config, body = model.config, model.config.flops_per_token(length, include_head=False)
    head = config.flops_per_token(length) - body
    if model.adapter is None:
        return body, head
    frozen = config.num_matmul_parameters - config.vocab_size * config.hidden_size
    return body - 2 * frozen + 6 * count_trainable_parameters(model), head * 2 / 3


def check_token_ids(batch: Batch, vocab_size: int) -> None:
    """UserError if an id does not fit the model: an index error on a GPU says neither what nor where."""
    if int(batch.ids.max()) >= vocab_size:
        raise UserError(
            f"the data holds id {int(batch.ids.max())}, the model's vocabulary ends at {vocab_size - 1}"
        )
