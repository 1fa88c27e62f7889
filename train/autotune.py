"""Choose how a run computes on its device: precision, torch.compile, micro-batch, loss path.

On a GPU the micro-batch and the loss path are measured. The plan is chosen once per run and stored,
because another micro-batch changes the last bits of the weights.
"""

import sys
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from common.errors import UserError
from model.llama import Llama, TransformerBlock
from model.loss import LossPath, available_loss_paths, linear_cross_entropy
from model.precision import DTYPES, Precision, resolve_precision
from train import distributed
from train.run.directory import RunDir
from train.run.spec import RunSpec

# On a CPU more tokens at once are not faster (docs/log.md) and cost memory.
CPU_MICRO_TOKENS = 4096
# Needs little memory and works with any torch; bench/loss.py compares the paths. Fixed, because
# where two paths are equally fast, a measured choice would differ from run to run, and with it the
# last bits of the weights.
CPU_LOSS_PATH: LossPath = "chunked"
# The full path is tried where the fp32 logits of a micro-batch fit in this.
FULL_LOGITS_BYTES = 256 << 20
# Share of the available GPU memory that a micro-batch may use: fragmentation needs the rest.
MAX_MEMORY_SHARE = 0.9
# A larger micro-batch must be at least 3 % faster per row.
MIN_SPEEDUP = 0.97


@dataclass(frozen=True)
class ComputePlan:
    """How a run computes on its device. The order of data does not depend on it."""

    device: str
    precision: Precision
    compile: bool
    micro_rows: int
    loss_path: LossPath


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of forward passes; weights and optimizer state stay fp32."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def resolve_compute_plan(spec: RunSpec, run: RunDir, model: Llama) -> ComputePlan:
    """Return the stored plan of the run, or else a measured one; the same on all ranks."""
    rows_per_rank = spec.rows_per_step // distributed.world_size()
    plan = {}
    if distributed.is_main_process():
        plan = asdict(_load_or_autotune(spec, run, model, rows_per_rank))
    compute_plan = ComputePlan(**distributed.broadcast_object(plan))
    # The plan may come from a run on fewer processes, with more rows for each.
    return replace(compute_plan, micro_rows=min(compute_plan.micro_rows, rows_per_rank))


def _load_or_autotune(spec: RunSpec, run: RunDir, model: Llama, rows_per_rank: int) -> ComputePlan:
    """Return the stored plan if it is of the same kind of device and the same options."""
    options, device = spec.options, spec.device
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    request = {
        "precision": options.precision,
        "compile": options.compile,
        "micro_batch": options.micro_batch,
    }
    stored = run.load_compute_plan()
    fields = ComputePlan.__dataclass_fields__.keys()
    if stored and stored["asked"] == request and stored["choices"].keys() == fields:
        compute_plan = ComputePlan(**stored["choices"])
        if compute_plan.device == device_name:
            return replace(compute_plan, compile=compute_plan.compile and can_compile(model))
    compute_plan = autotune(
        model,
        device,
        precision=options.precision,
        compile_mode=options.compile,
        micro_batch=options.micro_batch,
        rows_per_step=rows_per_rank,
        length=options.sequence_length,
    )
    run.save_compute_plan({"asked": request, "choices": asdict(compute_plan)})
    return compute_plan


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
    """Return the plan for steps of `rows_per_step` rows of `length` tokens on one process.

    Options that are not "auto" are taken as they are, but a micro-batch is lowered to a divisor of
    the rows, so that all micro-batches of a step are equal.
    """
    resolved_precision = resolve_precision(device, precision)
    wants_compile = device.type == "cuda" if compile_mode == "auto" else bool(compile_mode)
    is_compiled = wants_compile and can_compile(model)
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
    """Check that torch.compile works here, on one feed-forward block; if not, warn with the reason.

    It needs a C++ compiler on a CPU; on a GPU Triton, a C compiler, and a recent enough card.
    """
    block = cast(TransformerBlock, model.model.layers[0]).mlp
    weight = block.gate_proj.weight
    x = torch.ones(2, weight.shape[1], device=weight.device, requires_grad=True)
    try:
        torch.compile(block)(x).sum().backward()
    except Exception as error:  # each part of the tool chain raises its own type
        # The first paragraph is the reason; the rest is advice on debugging the compiler.
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
    """Return the micro-batch and loss path that take the least time per row among those that fit.

    Pairs are measured from one row upwards until the memory is full.
    """
    backbone = torch.compile(model.model) if is_compiled else model.model
    # Two moments per weight, which do not exist yet.
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
            limit = MAX_MEMORY_SHARE * _available_gpu_bytes(device)
            if best and memory + optimizer_state_bytes > limit:
                continue
            fits = True
            if seconds < MIN_SPEEDUP * best_time:
                best, best_time = (rows, path), seconds
        if not fits:
            break
    if is_compiled:
        # The trials left one program for any number of rows; the chosen number gets its own.
        torch.compiler.reset()
    torch.cuda.empty_cache()
    if best is None:
        raise UserError(
            f"{divisors[0]} × {length} tokens at once do not fit in the GPU's memory: use a "
            "shorter --sequence_length, a smaller --model.preset or, where it is above 1, a "
            "smaller --micro_batch"
        )
    return best


def _candidate_loss_paths(tokens: int, vocab_size: int, precision: Precision) -> list[LossPath]:
    """Return the loss paths to try for a micro-batch of so many tokens."""
    full_fits = tokens * vocab_size * 4 <= FULL_LOGITS_BYTES
    paths = available_loss_paths(DTYPES[precision])
    return [path for path in paths if path != "full" or full_fits]


def _benchmark_forward_backward(
    model: Llama,
    backbone: Any,
    device: torch.device,
    precision: Precision,
    rows: int,
    length: int,
    path: LossPath,
) -> tuple[float, int]:
    """Return the seconds per row of a forward and backward pass, and its peak memory in bytes."""
    ids = torch.randint(model.config.vocab_size, (rows, length), device=device)
    best = float("inf")
    for _ in range(3):  # the first pass compiles and warms up
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
    """Return the bytes that this process may use: its share of the card, less what others use."""
    free, total = torch.cuda.mem_get_info(device)
    return min(
        total * torch.cuda.get_per_process_memory_fraction(device),
        free + torch.cuda.memory_reserved(device),
    )


def count_trainable_parameters(model: Llama) -> int:
    """Return the number of parameters that training changes: all, or those of an adapter."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
