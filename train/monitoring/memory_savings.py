"""Changes of a run that lower its peak of memory, those first that cost least."""

import math
from collections.abc import Iterator
from dataclasses import replace

from model.lora_options import LoraOptions
from train.monitoring.memory_plan import Workload, plan_memory
from train.monitoring.run_memory import count_scored_tokens

# Changes that save less than this share of the peak are not worth a line.
MIN_SAVING = 0.01


def with_rows(
    workload: Workload, micro_rows: int, *, step_rows: int, target_share: float
) -> Workload:
    """Return the workload with another micro-batch of the same step."""
    return replace(
        workload,
        micro_rows=micro_rows,
        micro_batches=math.ceil(step_rows / micro_rows),
        targets=max(1, round(micro_rows * workload.length * target_share)),
        scored_tokens=count_scored_tokens(
            is_packed=workload.is_packed, micro_rows=micro_rows, length=workload.length
        ),
    )


def change_rows(workload: Workload, micro_rows: int) -> Workload:
    """Return the workload with another micro-batch; a step has at least as many rows as before."""
    return with_rows(
        workload,
        micro_rows,
        step_rows=workload.micro_rows * workload.micro_batches,
        target_share=workload.num_targets / workload.tokens,
    )


def find_savings(workload: Workload, process_bytes: int) -> list[tuple[str, int]]:
    """Return the changes that lower the peak, and the bytes that each saves alone."""
    peak = plan_memory(workload, process_bytes).peak_bytes
    savings = []
    for change, changed in propose_changes(workload):
        saved = peak - plan_memory(changed, process_bytes).peak_bytes
        if saved > MIN_SAVING * peak:
            savings.append((change, saved))
    return savings


def suggest_fit(workload: Workload, process_bytes: int, memory_bytes: float) -> str | None:
    """Return a line with the options that make a run fit the memory, None if it fits as it is.

    These change weights by rounding at most. The first that suffice are named, cheap ones first.
    """

    def fits(changed: Workload) -> bool:
        return plan_memory(changed, process_bytes).peak_bytes <= memory_bytes

    if fits(workload):
        return None
    problem = f"more than the {memory_bytes / 1e9:.1f} GB that this machine can give: "
    rows = workload.micro_rows
    while rows > 1:
        rows //= 2
        if fits(change_rows(workload, rows)):
            return f"{problem}use --micro_batch {rows}"
    for change, changed in _propose_recomputation(workload):
        if fits(changed):
            return f"{problem}use {change.split(':')[0]}"
    options = "--micro_batch 1 --gradient_checkpointing layers"
    smallest = replace(change_rows(workload, 1), checkpointing="layers", is_compiled=False)
    if workload.device == "cuda":
        options += " --offload_activations true"
        smallest = replace(smallest, offloads=True)
    if fits(smallest):
        return f"{problem}use {options}"
    return f"{problem}use a smaller model or --sequence_length (docs/memory.md)"


def propose_changes(workload: Workload) -> Iterator[tuple[str, Workload]]:
    """Yield changes of a workload, each alone: first those that change neither model nor time."""
    if workload.micro_rows > 1:
        rows = workload.micro_rows // 2
        yield (
            f"--micro_batch {rows}: the same weights, up to rounding",
            change_rows(workload, rows),
        )
    if workload.loss_path != "chunked":
        yield "the chunked loss", replace(workload, loss_path="chunked")
    if workload.device == "cuda" and workload.precision == "fp32":
        yield "--precision bf16", replace(workload, precision="bf16")
    if workload.device == "cuda" and not workload.is_compiled:
        yield "--compile true", replace(workload, is_compiled=True)
    yield from _propose_recomputation(workload)
    if workload.optimizer in ("muon", "adamw"):
        yield "--optimizer.name adamw8bit", replace(workload, optimizer="adamw8bit")
    adapter = replace(workload, lora=workload.lora or LoraOptions(), has_base=True)
    if workload.lora is None:
        yield "--adapter lora: trains a small part of the weights", adapter
    if workload.quantization is None and workload.precision != "fp16":
        yield (
            "--adapter lora --quantize nf4: each step takes longer",
            replace(adapter, quantization="nf4", is_compiled=False),
        )
    if workload.length > 1:
        shorter = replace(workload, length=workload.length // 2)
        yield (
            f"--sequence_length {shorter.length}: forgets more",
            change_rows(shorter, workload.micro_rows),
        )


def _propose_recomputation(workload: Workload) -> Iterator[tuple[str, Workload]]:
    """Yield the choices of --gradient_checkpointing that keep less than now."""
    if workload.checkpointing == "none":
        yield (
            "--gradient_checkpointing attention: computes all but attention twice",
            replace(workload, checkpointing="attention", is_compiled=False),
        )
    if workload.checkpointing != "layers":
        yield (
            "--gradient_checkpointing layers: about a third more time",
            replace(workload, checkpointing="layers", is_compiled=False),
        )
    elif workload.device == "cuda" and not workload.offloads:
        yield (
            "--offload_activations true: needs as much memory of the host, and its bus",
            replace(workload, offloads=True),
        )
