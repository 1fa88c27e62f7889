"""Checks of the micro-batch search: the planned memory against the peak during training."""

import torch

from bench.gpu.context import Context
from bench.gpu.report import NotRun
from bench.gpu.runs import cap_gpu_memory
from bench.gpu.steps import TrainingStep
from common.machine import peak_memory_bytes
from model.llama import Llama
from train.autotune import autotune
from train.monitoring.memory_plan import plan_memory
from train.monitoring.run_memory import describe_run
from train.options import PretrainOptions

# Plan and measurement may differ by this factor: the plan does not know the fusions of a compiler.
MAX_MEMORY_RATIO = 2.0
# Upper end of the search for the largest micro-batch.
MAX_MICRO_ROWS = 2048


def micro_batch(context: Context, memory_gb: str) -> None:
    """Search the fastest micro-batch of the 43M model, and compare planned and measured memory.

    `memory_gb` is the memory that the check may use, or "all". Then the rows of the micro-batch are
    doubled until memory runs out.
    """
    report, is_cuda = context.report, context.device.type == "cuda"
    limit_bytes = _limit_memory(context, memory_gb)
    rows, length = (8, 32) if context.is_small else (256, 512)
    config = context.model_config("43m")
    model = Llama(config).init_weights(0).to(context.device).train()
    compute_plan = autotune(
        model,
        context.device,
        precision="auto",
        compile="auto",
        micro_batch="auto",
        rows_per_step=rows,
        length=length,
    )
    options = PretrainOptions(sequence_length=length, batch_tokens=rows * length)
    workload = describe_run(
        model, compute_plan, options, micro_batches=rows // compute_plan.micro_rows
    )
    planned_bytes = plan_memory(workload).tensor_bytes
    mode = "compiled" if compute_plan.compile else "eager"
    report.figure("fastest micro-batch", float(compute_plan.micro_rows), f"rows of {length}")
    report.figure("chosen", f"{compute_plan.precision}, {compute_plan.loss_path} loss, {mode}")
    report.figure("planned", planned_bytes / 1e9, "GB")
    step = TrainingStep(model, compute_plan, length, rows)
    # What the search allocated must not count as the peak of training.
    context.reset_peak_memory()
    # Two steps, because the optimizer allocates its state in the first.
    for _ in range(2):
        step()
    if not is_cuda:
        report.figure("peak of the process", peak_memory_bytes() / 1e9, "GB")
        report.note("on a CPU nothing is searched, and the peak is that of the whole process")
        return
    peak_bytes = torch.cuda.max_memory_allocated()
    reserved_bytes = torch.cuda.max_memory_reserved()
    report.figure("peak allocated", peak_bytes / 1e9, "GB")
    report.figure("peak reserved", reserved_bytes / 1e9, "GB")
    report.compare(
        "planned against the peak, the larger over the smaller",
        max(planned_bytes / peak_bytes, peak_bytes / planned_bytes),
        MAX_MEMORY_RATIO,
    )
    report.compare("peak reserved, GB", reserved_bytes / 1e9, limit_bytes / 1e9)
    largest = compute_plan.micro_rows
    while largest < MAX_MICRO_ROWS:
        try:
            step.set_micro_rows(2 * largest)
            step()
        except torch.cuda.OutOfMemoryError:
            model.zero_grad(set_to_none=True)
            break
        largest *= 2
    reason = "no more were tried" if largest >= MAX_MICRO_ROWS else "twice as many do not fit"
    report.figure("largest micro-batch", float(largest), f"rows of {length}; {reason}")


def _limit_memory(context: Context, memory_gb: str) -> int:
    """Limit this process to `memory_gb` GB of GPU memory or "all"; return the limit in bytes.

    Does nothing on a CPU, and returns 0. Raises NotRun if the GPU has less memory.
    """
    if context.device.type != "cuda":
        return 0
    _, total_bytes = torch.cuda.mem_get_info()
    if memory_gb == "all":
        return total_bytes
    limit_bytes = int(float(memory_gb) * 1e9)
    if limit_bytes > total_bytes:
        raise NotRun(f"the GPU has {total_bytes / 1e9:.1f} GB; see micro-batch-all")
    cap_gpu_memory(limit_bytes)
    return limit_bytes
