"""The memory plan of a run that is about to start."""

import math
import sys
from typing import Any

import torch
from torch import nn

from common.machine import resident_memory_bytes, total_memory_bytes
from data.batching.collate import Batch, BatchLoader
from evaluate.metrics.language_model import count_scored_rows
from model.llama import Llama
from train.autotune import MAX_MEMORY_FRACTION, ComputePlan
from train.monitoring.memory_plan import (
    BITSANDBYTES_BYTES,
    SCORED_TOKENS,
    Workload,
)
from train.options import TrainOptions
from train.run.spec import RunSpec

# Memory, as measured, that a process takes after the summary of a run: TensorBoard, pages of
# PyTorch's libraries that the first step touches, the records of the evaluations.
LATE_BYTES = 40 << 20
# Prompts that an evaluation answers together, by default of `generate_batch`.
ANSWER_ROWS = 16


def describe_run(
    model: Llama, compute_plan: ComputePlan, options: TrainOptions, **changes: Any
) -> Workload:
    """Return the workload of a run; `changes` are fields that replace those of the options."""
    adapter = model.adapter
    fields: dict[str, Any] = {
        "config": model.config,
        "length": options.sequence_length,
        "micro_rows": compute_plan.micro_rows,
        "precision": compute_plan.precision,
        "loss_path": compute_plan.loss_path,
        "optimizer": options.optimizer.name,
        "lora": adapter.options if adapter is not None else None,
        "quantization": adapter.quantize if adapter is not None else None,
        "checkpointing": options.gradient_checkpointing,
        "offloads": options.offload_activations,
        "answer_rows": min(ANSWER_ROWS, options.num_answered),
        "sampled_rows": options.sampled_rows,
        "samples": options.samples,
        "new_tokens": options.longest_answer,
        "has_reference": options.keeps_reference,
        "device": model.lm_head.weight.device.type,
        "is_compiled": compute_plan.compile,
    }
    return Workload(**{**fields, **changes})


def count_scored_tokens(*, is_packed: bool, micro_rows: int, length: int) -> int:
    """Return the positions that an evaluation scores together: windows of text or packed rows."""
    return max(count_scored_rows(length), micro_rows) * length if is_packed else SCORED_TOKENS


def available_memory_bytes(device: torch.device) -> float:
    """Return the memory that a run may plan with: of the machine, or nine tenths of a GPU's."""
    if device.type == "cpu":
        return total_memory_bytes()
    _, num_bytes = torch.cuda.mem_get_info(device)
    return MAX_MEMORY_FRACTION * num_bytes


def measure_process_bytes(model: Llama) -> int:
    """Return the memory of this process without the model, and what it takes later.

    bitsandbytes is left out, which a plan adds.
    """
    num_bytes = resident_memory_bytes() - count_weight_bytes(model) + LATE_BYTES
    return num_bytes - BITSANDBYTES_BYTES if "bitsandbytes" in sys.modules else num_bytes


def describe_step(
    spec: RunSpec, model: Llama, compute_plan: ComputePlan, batches: BatchLoader[Any]
) -> Workload:
    """Return the workload of a run with its data.

    A typical step tells how many positions have a loss, and whether rows hold several examples.
    """
    micro_rows, length = compute_plan.micro_rows, spec.options.sequence_length
    batch = batches.typical_batch()
    is_packed = batch.segments is not None
    # Answers that are not drawn yet may be longer than typical ones.
    is_unknown = batches.depends_on_weights
    return describe_run(
        model,
        compute_plan,
        spec.options,
        micro_rows=min(micro_rows, len(batch.ids)),
        micro_batches=math.ceil(len(batch.ids) / micro_rows),
        targets=None if is_unknown else count_targets(batch, micro_rows),
        is_packed=is_packed,
        loss_path=compute_plan.loss_path if spec.objective.uses_loss_path else "chunked",
        scored_tokens=count_scored_tokens(
            is_packed=is_packed, micro_rows=micro_rows, length=length
        ),
    )


def count_targets(batch: Batch, micro_rows: int) -> int:
    """Return the most positions with a loss that `micro_rows` successive rows have."""
    num_rows, length = batch.ids.shape
    if batch.loss_indices is None:
        return min(num_rows, micro_rows) * length
    counts = torch.bincount(batch.loss_indices // length, minlength=num_rows)
    return max(int(rows.sum()) for rows in counts.split(micro_rows))


def count_weight_bytes(model: nn.Module) -> int:
    """Return the bytes of a model; quantized weights are buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors)
