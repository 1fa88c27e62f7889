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
from model.lora import seed_dropout
from model.loss import LossPath, available_loss_paths, linear_cross_entropy
from model.precision import DTYPES, Precision, resolve_precision
from train import distributed
from train.run.directory import RunDir
from train.run.spec import RunSpec

# Maximum number of tokens of an automatic micro-batch on a CPU: more tokens at once are not faster
# and cost memory.
CPU_MICRO_TOKENS = 4096
# The chunked path needs little memory and works with every version of PyTorch; bench/loss.py
# compares the paths. The path is not measured on a CPU: if two paths are about equally fast, the
# choice, and with it the last bits of the weights, would differ from run to run (docs/log.md).
CPU_LOSS_PATH: LossPath = "chunked"
# The full path is tried if the fp32 logits of a micro-batch need at most this many bytes.
FULL_LOGITS_BYTES = 256 << 20
# Fraction of the available GPU memory that a micro-batch may use: fragmentation needs the rest.
MAX_MEMORY_FRACTION = 0.9
# A larger micro-batch, or another loss path, is chosen if it takes less than this fraction of the
# time per row of the best one so far.
MAX_RELATIVE_TIME = 0.97


@dataclass(frozen=True)
class ComputePlan:
    """How a run computes on its device. The order of data does not depend on it.

    Run directories store the fields under these names.
    """

    device: str  # the name of the GPU, or "cpu"
    precision: Precision
    compile: bool
    micro_rows: int  # rows of a micro-batch
    loss_path: LossPath


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context of forward passes; it does nothing in fp32.

    Weights and optimizer state stay fp32 with every precision.
    """
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def resolve_compute_plan(spec: RunSpec, run: RunDir, model: Llama) -> ComputePlan:
    """Return the plan that the run directory stores or, without one, choose a plan and store it.

    The main process chooses for all ranks. Raises UserError if no micro-batch fits in the memory of
    the GPU.
    """
    rows_per_rank = spec.rows_per_step // distributed.world_size()
    plan_fields = {}
    if distributed.is_main_process():
        plan_fields = asdict(_load_or_autotune(spec, run, model, rows_per_rank))
    compute_plan = ComputePlan(**distributed.broadcast_object(plan_fields))
    # The stored plan may come from fewer processes, each of which had more rows of a step.
    return replace(compute_plan, micro_rows=min(compute_plan.micro_rows, rows_per_rank))


def _load_or_autotune(spec: RunSpec, run: RunDir, model: Llama, rows_per_rank: int) -> ComputePlan:
    """Return the stored plan if it is for this kind of device and these options, else a new one."""
    options = spec.options
    device = spec.device
    # Neither checkpointed layers nor 4-bit weights have been tried with the compiler.
    is_plain = options.gradient_checkpointing == "none" and spec.quantize is None
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    # A stored plan is used only with the options that it was chosen for. The keys below, "asked"
    # and "choices" are those of the file in the run directory.
    request: dict[str, Any] = {
        "precision": options.precision,
        "compile": options.compile,
        "micro_batch": options.micro_batch,
    }
    if options.gradient_checkpointing != "none":
        request["gradient_checkpointing"] = options.gradient_checkpointing
    # A file of an earlier version may lack some fields of the plan.
    stored = run.load_compute_plan()
    field_names = ComputePlan.__dataclass_fields__.keys()
    if stored and stored["asked"] == request and stored["choices"].keys() == field_names:
        compute_plan = ComputePlan(**stored["choices"])
        if compute_plan.device == device_name:
            # Another machine with the same kind of device may lack a compiler.
            return replace(compute_plan, compile=compute_plan.compile and can_compile(model))
    compute_plan = autotune(
        model,
        device,
        precision=spec.precision,
        compile=options.compile if is_plain else False,
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
    compile: bool | str,
    micro_batch: int | str,
    rows_per_step: int,
    length: int,
) -> ComputePlan:
    """Return the plan for steps of `rows_per_step` rows of `length` tokens on one process.

    Options other than "auto" are kept, except that a micro-batch is lowered to a divisor of
    `rows_per_step`, so that all micro-batches of a step have the same number of rows. Raises
    UserError if no micro-batch fits in the memory of the GPU.
    """
    resolved_precision = resolve_precision(device, precision, trained=model.config)
    wants_compile = device.type == "cuda" if compile == "auto" else bool(compile)
    is_compiled = wants_compile and can_compile(model)
    divisors = [n for n in range(1, rows_per_step + 1) if rows_per_step % n == 0]
    if isinstance(micro_batch, int):
        divisors = [max(n for n in divisors if n <= micro_batch)]
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        micro_rows, loss_path = _find_fastest_micro_batch(
            model, device, resolved_precision, divisors, length, is_compiled=is_compiled
        )
    else:
        name = "cpu"
        loss_path = CPU_LOSS_PATH
        # The smallest divisor is there even if its rows exceed the limit.
        small_enough = [n for n in divisors if n * length <= CPU_MICRO_TOKENS]
        micro_rows = max([divisors[0], *small_enough])
    return ComputePlan(name, resolved_precision, is_compiled, micro_rows, loss_path)


def can_compile(model: Llama) -> bool:
    """Return whether torch.compile works on this machine; if not, print a warning with the reason.

    On a CPU it needs a C++ compiler; on a GPU it needs Triton, a C compiler, and a GPU that Triton
    supports. The check compiles the forward and backward pass of one feed-forward block.
    """
    block = cast(TransformerBlock, model.model.layers[0]).mlp
    device = model.lm_head.weight.device
    x = torch.ones(2, model.config.hidden_size, device=device, requires_grad=True)
    try:
        torch.compile(block)(x).sum().backward()
    except Exception as error:  # each part of the tool chain raises its own type
        # The first paragraph is the reason; the rest is advice on debugging the compiler.
        first_paragraph = str(error).split("\n\n")[0]
        reason = " ".join(first_paragraph.split())[:300] or type(error).__name__
        print(
            f"warning: torch.compile does not work here, training goes on without it: {reason}",
            file=sys.stderr,
        )
        return False
    finally:
        # Leave no trace of the check: neither gradients nor compiled code.
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
    """Return the number of rows and the loss path that take the least time per row.

    `divisors` are the numbers of rows to try, in ascending order, until the memory is full. Raises
    UserError if the first of them does not fit.
    """
    backbone = torch.compile(model.model) if is_compiled else model.model
    # Two fp32 moments per trainable weight, which the optimizer allocates in its first step.
    optimizer_state_bytes = 8 * count_trainable_parameters(model)
    best: tuple[int, LossPath] | None = None
    best_time = float("inf")  # seconds per row
    for rows in divisors:
        fits = False
        for loss_path in _candidate_loss_paths(rows * length, model.config.vocab_size, precision):
            try:
                seconds, memory_bytes = _benchmark_forward_backward(
                    model, backbone, device, precision, rows, length, loss_path
                )
            except torch.cuda.OutOfMemoryError:
                continue
            finally:
                model.zero_grad(set_to_none=True)
            # The first measurement counts whatever it needs: it may just fit, and there is no
            # smaller number of rows to try.
            limit = MAX_MEMORY_FRACTION * _available_gpu_bytes(device)
            if best and memory_bytes + optimizer_state_bytes > limit:
                continue
            fits = True
            if seconds < MAX_RELATIVE_TIME * best_time:
                best = (rows, loss_path)
                best_time = seconds
        if not fits:
            break
    if is_compiled:
        # After several numbers of rows the compiler has made code for any number. Without it, the
        # chosen number gets specialized code.
        torch.compiler.reset()
    torch.cuda.empty_cache()
    if best is None:
        raise UserError(
            f"{divisors[0]} × {length} tokens at once do not fit in the GPU's memory: use "
            "--gradient_checkpointing layers, a shorter --sequence_length, a smaller "
            "--model.preset or, if it is above 1, a smaller --micro_batch"
        )
    return best


def _candidate_loss_paths(tokens: int, vocab_size: int, precision: Precision) -> list[LossPath]:
    """Return the loss paths to try for a micro-batch of `tokens` tokens."""
    full_fits = tokens * vocab_size * 4 <= FULL_LOGITS_BYTES
    loss_paths = available_loss_paths(DTYPES[precision])
    return [loss_path for loss_path in loss_paths if loss_path != "full" or full_fits]


def _benchmark_forward_backward(
    model: Llama,
    backbone: Any,
    device: torch.device,
    precision: Precision,
    rows: int,
    length: int,
    loss_path: LossPath,
) -> tuple[float, int]:
    """Return the seconds per row of a forward and backward pass, and its peak memory in bytes.

    The batch is `rows` rows of `length` random ids. `backbone` is the model below the LM head,
    which may be compiled.
    """
    ids = torch.randint(model.config.vocab_size, (rows, length), device=device)
    min_seconds = float("inf")
    # The first pass compiles and warms up; the fastest counts, because other work only slows down.
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        seed_dropout(model, list(range(rows)))
        with autocast(device, precision):
            hidden = backbone(ids, None, None, None).flatten(0, 1)
            # Any targets do, here the ids themselves. With a scale of 0 all gradients are 0.
            loss = linear_cross_entropy(
                hidden, model.lm_head.weight, ids.flatten(), scale=0.0, path=loss_path
            )
        loss.backward()
        torch.cuda.synchronize(device)
        min_seconds = min(min_seconds, time.perf_counter() - start)
    return min_seconds / rows, torch.cuda.max_memory_allocated(device)


def _available_gpu_bytes(device: torch.device) -> float:
    """Return the bytes of GPU memory that this process may use, including those in use by it.

    They are limited by the memory fraction of the process and by the memory of other processes.
    """
    free, total = torch.cuda.mem_get_info(device)
    # To the driver, memory that PyTorch has reserved is not free, but this process can use it.
    return min(
        total * torch.cuda.get_per_process_memory_fraction(device),
        free + torch.cuda.memory_reserved(device),
    )


def count_trainable_parameters(model: Llama) -> int:
    """Return the number of trainable parameters: all of them, or those of an adapter."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
