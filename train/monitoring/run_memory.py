"""The memory plan of a run that is about to start."""

import math
from typing import Any

from common.machine import resident_memory_bytes
from data.batching.collate import BatchLoader
from model.llama import Llama
from train.autotune import ComputePlan
from train.monitoring.memory_plan import MemoryPlan, Workload, plan_memory
from train.options import TrainOptions

# Memory, as measured, that a process takes after the summary of a run: TensorBoard, pages of
# PyTorch's libraries that the first step touches, the records of the evaluations.
LATE_BYTES = 40 << 20
# Prompts that an evaluation answers together, by default of `generate_batch`.
ANSWER_ROWS = 16


def describe_run(
    model: Llama, compute_plan: ComputePlan, options: TrainOptions, **changes: Any
) -> Workload:
    """Return the workload of a run; `changes` are fields that replace those of the options."""
    fields: dict[str, Any] = {
        "config": model.config,
        "length": options.sequence_length,
        "micro_rows": compute_plan.micro_rows,
        "precision": compute_plan.precision,
        "loss_path": compute_plan.loss_path,
        "optimizer": options.optimizer.name,
        "lora": model.adapter.options if model.adapter is not None else None,
        "device": model.lm_head.weight.device.type,
        "is_compiled": compute_plan.compile,
    }
    return Workload(**{**fields, **changes})


def plan_run_memory(
    model: Llama, compute_plan: ComputePlan, options: TrainOptions, batches: BatchLoader[Any]
) -> MemoryPlan:
    """Return the plan of a run, with what is resident now in place of an idle process.

    A typical step tells how many positions have a loss, and whether rows hold several examples.
    """
    # The batches of a step may be answers that are not drawn yet.
    batch = batches.typical_batch()
    micro_batches = math.ceil(len(batch.ids) / compute_plan.micro_rows)
    workload = describe_run(
        model,
        compute_plan,
        options,
        micro_batches=micro_batches,
        targets=math.ceil(len(batch.targets) / micro_batches),
        is_packed=batch.segments is not None,
        # An evaluation of text continues one prompt, one of answers as many as `generate_batch`.
        answer_rows=1 if batch.loss_indices is None else ANSWER_ROWS,
    )
    # The model exists already, so its weights are in the resident memory too.
    weight_bytes = sum(parameter.nbytes for parameter in model.parameters())
    return plan_memory(workload, resident_memory_bytes() - weight_bytes + LATE_BYTES)
