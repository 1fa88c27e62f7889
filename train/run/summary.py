"""Print the model, data, machine and cost of a run before it starts."""

from typing import Any

from data.batching.distractors import DistractorExamples
from model.llama import Llama
from train import distributed
from train.autotune import ComputePlan, count_trainable_parameters
from train.monitoring.throughput import (
    count_attention_pairs,
    effective_row_length,
    training_flops_per_token,
)
from train.run.directory import RunDir
from train.run.example_data import ExampleData
from train.run.past_lengths import advise_on_row_length, describe_pasts
from train.run.spec import RunSpec, TrainingPlan

# What a repeated token teaches decays with a constant of about 15 epochs (Muennighoff et al. 2023,
# "Scaling Data-Constrained Language Models"): after 40 epochs it is below a tenth.
MAX_USEFUL_EPOCHS = 40
# A run of more floating point operations than this takes a CPU many hours.
MAX_CPU_FLOPS = 1e15


def print_run_summary(
    spec: RunSpec,
    run: RunDir,
    model: Llama,
    plan: TrainingPlan,
    compute_plan: ComputePlan,
    memory_bytes: int,
    memory_advice: str | None = None,
) -> None:
    """Print the model, the data, the device and the run directory, with advice if something is off.

    `memory_bytes` is the planned peak; `memory_advice` says what to do if it is too much.

    Other advice concerns too many epochs, rows that are too short, a missing validation split, and
    a run too long for a CPU.
    """
    options = spec.options
    flops = estimate_run_flops(model, plan)
    _print_model(spec, model)
    print(f"data      {plan.description}, {flops:.2e} FLOP")
    if plan.epochs > MAX_USEFUL_EPOCHS:
        _print_note(
            f"after {MAX_USEFUL_EPOCHS} epochs the same text teaches almost nothing: train for "
            "fewer steps, or on more data"
        )
    if (pasts := describe_pasts(spec, plan)) is not None:
        print(f"past      {pasts}")
    for advice in [*advise_on_row_length(spec, plan), *advise_on_passages(spec)]:
        _print_note(advice)
    if not spec.evaluator.has_data:
        _print_note("no validation data: there will be no validation loss and no best checkpoint")
    print(
        f"machine   {compute_plan.device}, {compute_plan.precision}, "
        f"{compute_plan.micro_rows} × {options.sequence_length} tokens at once"
        f"{options.describe_step()}, loss path {compute_plan.loss_path}"
        f"{', compiled' if compute_plan.compile else ''}; "
        f"about {memory_bytes / 1e9:.1f} GB of memory"
    )
    if memory_advice is not None:
        _print_note(memory_advice)
    if spec.device.type == "cpu" and flops > MAX_CPU_FLOPS:
        _print_note("this takes a CPU many hours: use fewer --max_steps or a smaller model")
    world_size = distributed.world_size()
    if world_size > 1:
        print(
            f"processes {world_size} ({options.parallel}), "
            f"{spec.rows_per_step // world_size} rows of a step each"
        )
    state = "new" if run.start_step is None else f"continues after step {run.start_step}"
    print(f"run       {run.folder} ({state})", flush=True)


def advise_on_passages(spec: RunSpec) -> list[str]:
    """Return a line for each set of distractors of which rows hold fewer than its name says."""
    if not isinstance(spec.data, ExampleData):
        return []
    lines = []
    for mixture_set, examples in zip(spec.data.sets, spec.data.example_sets, strict=True):
        if not isinstance(examples, DistractorExamples):
            continue
        mean = examples.mean_passages()
        if round(mean, 1) < examples.num_wanted:
            lines.append(
                f"{mixture_set.name}: {mean:.1f} of {examples.num_wanted} other passages fit on "
                "average: take a longer --sequence_length or, if the name has a number of tokens, "
                "a larger one"
            )
    return lines


def estimate_run_flops(model: Llama, plan: TrainingPlan) -> float:
    """Return the number of floating point operations of the whole run.

    It is scaled up from typical rows, such as those of the first step of this rank.
    """
    batch = plan.batches.typical_batch()
    length = effective_row_length(batch.num_tokens, count_attention_pairs(batch))
    body_flops, head_flops = training_flops_per_token(model, length)
    # Positions without a target do not pass through the head, which does most of the work in a
    # small model.
    target_fraction = len(batch.targets) / batch.num_tokens
    return plan.num_tokens * (body_flops + head_flops * target_fraction)


def _print_model(spec: RunSpec, model: Llama) -> None:
    """Print the size of the model and, with an adapter, the settings of LoRA."""
    config = model.config
    flops_per_token = config.flops_per_token(spec.options.sequence_length)
    print(
        f"model     {spec.model_name}: {config.num_parameters / 1e6:.1f}M parameters, vocabulary "
        f"{config.vocab_size:,}, {flops_per_token / 1e6:.1f} MFLOP per token"
        f"{', reading heads' if config.reading_heads else ''}"
        f"{_describe_scaling(config.rope_scaling)}"
    )
    if spec.lora is not None:
        print(
            f"adapter   LoRA of rank {spec.lora.rank} (alpha {spec.lora.alpha:g}, dropout "
            f"{spec.lora.dropout:g}) on {', '.join(spec.lora.targets)}: "
            f"{count_trainable_parameters(model):,} parameters train, the rest is frozen"
            f"{', its layers in NF4' if spec.quantize == 'nf4' else ''}"
        )


def _describe_scaling(scaling: dict[str, Any] | None) -> str:
    """Return a phrase about the scaling of rotary frequencies, empty without one."""
    if scaling is None:
        return ""
    return f", RoPE scaling {scaling['rope_type']} × {scaling['factor']:g}"


def _print_note(note: str) -> None:
    """Print a line of advice, indented like the values of the summary."""
    print(f"          {note}")
