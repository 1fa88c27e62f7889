"""Checks of the micro-batch search: the planned memory beside the peak during training."""

import torch

from bench.gpu.context import Context
from bench.gpu.report import NotRun
from bench.gpu.runs import cap_memory
from bench.gpu.steps import TrainingStep
from common.machine import peak_memory_bytes
from model.llama import Llama
from train.autotune import autotune
from train.monitoring.memory_estimate import estimate_process_bytes

# Plan and measurement may differ by this factor: the plan does not know the fusions of a compiler.
FACTOR = 2.0
# Upper end of the search for the largest micro-batch.
MOST_ROWS = 2048


def micro_batch(context: Context, cap: str) -> None:
    """Search a micro-batch at 43M in `cap` GB or all memory; compare the plan with the peak.

    Then the rows are doubled until memory runs out.
    """
    report, cuda = context.report, context.device.type == "cuda"
    limit = _limit(context, cap)
    rows, length = (8, 32) if context.small else (256, 512)
    config = context.shape("43m")
    model = Llama(config).init_weights(0).to(context.device).train()
    choices = autotune(
        model,
        context.device,
        precision="auto",
        compile_mode="auto",
        micro_batch="auto",
        rows_per_step=rows,
        length=length,
    )
    planned = estimate_process_bytes(model, choices, length)
    mode = "compiled" if choices.compile else "eager"
    how = f"{choices.precision}, {choices.loss_path} loss, {mode}"
    report.figure("fastest micro-batch", float(choices.micro_rows), f"rows of {length}")
    report.figure("chosen", how)
    report.figure("planned", planned / 1e9, "GB")
    step = TrainingStep(model, choices, length, rows)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        step()
    if not cuda:
        report.figure("peak of the process", peak_memory_bytes() / 1e9, "GB")
        report.note("on a CPU nothing is searched, and the peak is that of the whole process")
        return
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    report.figure("peak allocated", peak / 1e9, "GB")
    report.figure("peak reserved", reserved / 1e9, "GB")
    report.compare(
        "planned against the peak, the larger over the smaller",
        max(planned / peak, peak / planned),
        FACTOR,
    )
    report.compare("peak reserved, GB", reserved / 1e9, limit / 1e9)
    largest = choices.micro_rows
    while largest < MOST_ROWS:
        try:
            step.set_rows(2 * largest)
            step()
        except torch.cuda.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            break
        largest *= 2
    end = "no more were tried" if largest >= MOST_ROWS else "twice as many do not fit"
    report.figure("largest micro-batch", float(largest), f"rows of {length}; {end}")


def _limit(context: Context, cap: str) -> int:
    """Cap the memory of this process, and return the cap. Raises NotRun if the card has less."""
    if context.device.type != "cuda":
        return 0
    total = torch.cuda.mem_get_info()[1]
    if cap == "all":
        return total
    size = int(float(cap) * 1e9)
    if size > total:
        raise NotRun(f"the card has {total / 1e9:.1f} GB; see micro-batch-all")
    cap_memory(size)
    return size
