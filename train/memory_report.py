"""Print the memory plan of a run, what fits each card, and what to change first."""

import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.files import read_json, write_json
from common.machine import collect_environment, resident_memory_bytes, resolve_device
from common.metrics_file import read_metrics
from model.checkpoint.locate import CONFIG_FILE, adapter_chain
from model.config import LlamaConfig, config_from_preset
from model.loss import available_loss_paths
from model.precision import DTYPES, Precision, resolve_precision
from train.autotune import CPU_MICRO_TOKENS, MAX_MEMORY_FRACTION
from train.memory_options import MemoryOptions
from train.monitoring.memory_plan import (
    MemoryPlan,
    Workload,
    count_adapter_parameters,
    count_host_bytes,
    plan_memory,
)
from train.monitoring.memory_savings import change_rows, find_savings, with_rows
from train.monitoring.run_memory import ANSWER_ROWS, LATE_BYTES

# Memory, as measured, that a run takes between its imports and the summary: tokenizer, data, the
# measurement of the matmul rate.
START_BYTES = 24 << 20
GIB = 1 << 30
CARD_GIB = (6, 8, 12, 16, 24, 40, 80)
MAX_ROWS = 1 << 16
# The mark of plans that no measurement has confirmed.
UNMEASURED = "arithmetic, not measured"


def report_memory(options: MemoryOptions) -> None:
    """Print the plan of the options, and write the `--json` file.

    Raises UserError if the model cannot be read, or if the run for the rate has none.
    """
    workload = build_workload(options)
    process_bytes = idle_process_bytes() if workload.device == "cpu" else 0
    plan = plan_memory(workload, process_bytes)
    largest = {gib: find_largest_rows(workload, gib * GIB, process_bytes) for gib in CARD_GIB}
    savings = find_savings(workload, process_bytes)
    hours = _estimate_hours(options)
    _print_workload(options, workload)
    _print_phases(plan, count_host_bytes(workload))
    _print_largest(workload, largest)
    _print_savings(savings)
    if hours is not None:
        print(f"\n{options.tokens:,} tokens take {hours:,.1f} hours")
    if options.json_file:
        write_json(
            options.json_file,
            {
                "made": collect_environment(),
                "workload": workload.to_json(),
                "is_measured": is_measured(workload),
                "peak_bytes": plan.peak_bytes,
                "peak_phase": plan.peak_phase,
                "host_bytes": count_host_bytes(workload),
                "phases": plan.phases,
                "largest_micro_batch": largest,
                "savings": [{"change": change, "bytes": size} for change, size in savings],
                "hours": hours,
            },
        )


def idle_process_bytes() -> int:
    """Return the memory of a process that trains, without the tensors of training.

    The modules that training needs are imported and measured here, because their size depends on
    the build of PyTorch.
    """
    import train.pretrain_run
    import train.sft_run  # noqa: F401

    return resident_memory_bytes() + START_BYTES + LATE_BYTES


def build_workload(options: MemoryOptions) -> Workload:
    """Return the workload of the options; "auto" is resolved.

    Raises UserError if there is no model with these options.
    """
    # Only "auto" looks for a device: one can plan for a GPU elsewhere.
    device = resolve_device("auto").type if options.device == "auto" else options.device
    config = _resolve_config(options)
    precision: Precision = "bf16"
    if options.precision != "auto":
        precision = options.precision
    elif device == "cpu":
        is_quantized = options.quantization is not None
        precision = resolve_precision(
            torch.device("cpu"), "auto", trained=config, is_quantized=is_quantized
        )
    if options.loss_path not in available_loss_paths(DTYPES[precision]):
        raise UserError(
            f"--loss_path {options.loss_path}: does not work in {precision}; use chunked"
        )
    rows = max(1, options.batch_tokens // options.sequence_length)
    if options.grpo.prompts:
        # A row holds one answer at least.
        rows = options.grpo.prompts * options.grpo.samples
    micro_rows = 1
    if options.micro_batch != "auto":
        micro_rows = options.micro_batch
    elif device == "cpu":
        micro_rows = min(rows, max(1, CPU_MICRO_TOKENS // options.sequence_length))
    # As in training, see `train.autotune`.
    can_compile = options.quantize == "none" and options.gradient_checkpointing == "none"
    is_adapted = options.adapter == "lora"
    workload = Workload(
        config,
        options.sequence_length,
        micro_rows,
        is_packed=options.is_packed,
        precision=precision,
        loss_path=options.loss_path,
        optimizer=options.optimizer.name,
        lora=options.lora if is_adapted else None,
        quantization=options.quantization,
        checkpointing=options.gradient_checkpointing,
        offloads=options.offload_activations,
        answer_rows=min(ANSWER_ROWS, options.evaluation.examples) if options.is_packed else 1,
        sampled_rows=min(options.grpo.batch, options.grpo.prompts * options.grpo.samples),
        samples=options.grpo.samples,
        new_tokens=(
            options.grpo.max_new_tokens
            if options.grpo.prompts
            else options.evaluation.max_new_tokens
        ),
        has_base=isinstance(options.base, Path) or is_adapted,
        has_reference=options.grpo.prompts > 0 and options.grpo.kl > 0 and not is_adapted,
        device="cuda" if device == "cuda" else "cpu",
        is_compiled=(
            device == "cuda" and can_compile if options.compile == "auto" else options.compile
        ),
    )
    return with_rows(workload, micro_rows, step_rows=rows, target_share=options.target_share)


def _resolve_config(options: MemoryOptions) -> LlamaConfig:
    """Return the config of the base or, without one, that of the options under `model`."""
    if not isinstance(options.base, Path):
        overrides: dict[str, Any] = options.model.preset_overrides()
        config = config_from_preset(options.model.preset, options.vocab_size, **overrides)
    else:
        # The first folder of the chain has the model, the others its adapters.
        file = adapter_chain(options.base)[0] / CONFIG_FILE
        config = LlamaConfig.from_hf(read_json(file), str(file))
        if options.model.rope_scaling is not None:
            # The frequencies take no memory, only the positions.
            context = max(config.max_position_embeddings, options.sequence_length)
            config = replace(config, max_position_embeddings=context)
    if config.max_position_embeddings < options.sequence_length:
        raise UserError(
            f"--sequence_length {options.sequence_length} is longer than the context of the model, "
            f"{config.max_position_embeddings}: use a shorter one, a larger "
            "--model.max_position_embeddings or, with --base, --model.rope_scaling yarn"
        )
    return config


def find_largest_rows(workload: Workload, memory_bytes: int, process_bytes: int) -> int:
    """Return the largest micro-batch whose peak fits the memory, 0 if no row does.

    On a GPU fragmentation needs the part that a run does not use either.
    """
    limit = memory_bytes * (MAX_MEMORY_FRACTION if workload.device == "cuda" else 1.0)

    def fits(rows: int) -> bool:
        return plan_memory(change_rows(workload, rows), process_bytes).peak_bytes <= limit

    if not fits(1):
        return 0
    low, high = 1, MAX_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def is_measured(workload: Workload) -> bool:
    """Return whether plans like this one were compared with runs (`bench.memory`)."""
    return workload.device == "cpu"


def _estimate_hours(options: MemoryOptions) -> float | None:
    """Return the hours of training on --tokens, None without that option."""
    if options.tokens is None:
        return None
    rate = options.tokens_per_second
    if options.rate_of is not None:
        rate = _measured_rate(options.rate_of)
    assert rate is not None, "options without a rate are refused"
    return options.tokens / rate / 3600


def _measured_rate(run: Path) -> float:
    """Return the median rate of a run. Raises UserError if it has none."""
    rates = [
        record["tokens_per_second"] for record in read_metrics(run) if record["kind"] == "train"
    ]
    if not rates:
        raise UserError(f"--rate_of {run}: has no record of training; name the folder of a run")
    return statistics.median(rates)


def _print_workload(options: MemoryOptions, workload: Workload) -> None:
    config, tokens = workload.config, workload.length
    name = options.base if isinstance(options.base, Path) else options.model.preset
    if not isinstance(options.base, Path) and options.model.preset_overrides():
        name = "a shape of your own"
    print(
        f"model     {name}: {config.num_parameters / 1e6:,.1f}M parameters, vocabulary "
        f"{config.vocab_size:,}{', linear layers in NF4' if workload.quantization else ''}"
    )
    if workload.lora is not None:
        print(
            f"adapter   LoRA of rank {workload.lora.rank} on {', '.join(workload.lora.targets)}: "
            f"{count_adapter_parameters(workload):,} parameters in {workload.lora.dtype}"
        )
    # Muon trains no adapters.
    is_adamw = workload.lora is not None and workload.optimizer == "muon"
    optimizer = "adamw" if is_adamw else workload.optimizer
    details: list[str] = [workload.device, workload.precision, optimizer]
    details.append(f"{workload.micro_rows} × {tokens:,} tokens at once")
    if workload.micro_batches > 1:
        details.append(f"{workload.micro_batches} micro-batches a step")
    details.append(f"loss path {workload.loss_path}")
    details += ["packed"] * workload.is_packed + ["compiled"] * workload.is_compiled
    if workload.checkpointing != "none":
        details.append(f"gradient checkpointing: {workload.checkpointing}")
    details += ["offloaded"] * workload.offloads
    if workload.sampled_rows:
        details.append(f"{workload.sampled_rows} answers drawn at once")
    print(f"training  {', '.join(details)}")
    if not is_measured(workload):
        print(f"          on a GPU: {UNMEASURED}")


def _print_phases(plan: MemoryPlan, host_bytes: int) -> None:
    print(f"peak      {_gigabytes(plan.peak_bytes)}: {plan.peak_phase}")
    if host_bytes:
        print(f"host      {_gigabytes(host_bytes)} of activations in its memory")
    print()
    for part, num_bytes in sorted(plan.breakdown.items(), key=lambda item: -item[1]):
        if num_bytes:
            print(f"    {part:28}{_gigabytes(num_bytes):>12}")
    print("\nphases")
    for name, parts in plan.phases.items():
        print(f"    {name:28}{_gigabytes(sum(parts.values())):>12}")


def _print_largest(workload: Workload, largest: dict[int, int]) -> None:
    print(f"\nlargest micro-batch, in rows of {workload.length:,} tokens")
    print("    memory GiB", *(f"{gib:>7}" for gib in largest))
    print("    rows      ", *(f"{rows or '-':>7}" for rows in largest.values()))


def _print_savings(savings: list[tuple[str, int]]) -> None:
    print("\nto need less, in this order; what each saves alone")
    for change, num_bytes in savings:
        print(f"    {_gigabytes(num_bytes):>10}  {change}")


def _gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f} GB"
