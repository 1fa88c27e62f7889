"""What the entry points share: a run's own options, a mix in words, the choices for a machine, the first and last lines."""

import contextlib
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import UserError, describe_disk_error
from common.machine import peak_memory_bytes
from common.options import load_yaml, parse_options
from data.shards import ShardSet
from model.llama import Llama
from train import distributed
from train.autotune import (
    ComputePlan,
    autotune,
    can_compile,
    count_trainable_parameters,
    estimate_process_bytes,
)
from train.options import TrainOptions
from train.run_dir import CONFIG_FILE, RunDir
from train.trainer import Trainer

T = TypeVar("T", bound=TrainOptions)
# What a text teaches when it is read once more decays with a constant of about 15 epochs (Muennighoff et al. 2023, "Scaling
# Data-Constrained Language Models"): here it is below a tenth of what new text teaches.
MAX_USEFUL_EPOCHS = 40


def parse_train_options(schema: type[T], kind: str, description: str) -> T:
    """Return the options of `python -m train.KIND`; a run that exists is resumed with its own."""

    def find_recorded_options(values: dict[str, Any]) -> Path | None:
        folder = (
            Path(str(values["run"]))
            if values["run"]
            else default_run_folder(kind, str(values["data"]))
        )
        config = folder / CONFIG_FILE
        if not config.is_file():
            return None
        _check_run_kind(config, kind)
        return config

    return parse_options(
        schema,
        sys.argv[1:],
        name=f"train.{kind}",
        description=description,
        has_config_file=True,
        find_recorded_options=find_recorded_options,
    )


def _check_run_kind(config: Path, kind: str) -> None:
    """UserError where the options of a run are those of the other command, which would all be unknown one by one."""
    tuned, run = "adapter" in load_yaml(config, ""), config.parent
    if kind == "sft" and not tuned:
        raise UserError(
            f"{run} is a pretraining run; to fine-tune what it learned: BASE={run} (--base {run})"
        )
    if kind == "pretrain" and tuned:
        raise UserError(
            f"{run} is a fine-tuning run; to go on with it: make sft RUN={run}; to train its weights on text: "
            f"BASE={run} (--base {run}) and another RUN"
        )


def default_run_folder(kind: str, data: str) -> Path:
    """Where a run goes that was given no name: mixes of other weights are other runs."""
    parts = (
        Path(name).resolve().name + (f"-{weight:g}" if weight != 1 else "")
        for name, weight in zip(*parse_mixture(data), strict=True)
    )
    return Path("runs") / f"{kind}-{'+'.join(parts)}"


def parse_mixture(text: str) -> tuple[list[str], tuple[float, ...]]:
    """`wikipedia:0.5+zhihu` → names and weights; a weight left out is 1."""
    names, weights = [], []
    for part in [text] if Path(text).exists() else text.split("+"):
        name, colon, weight = part.rpartition(":")
        try:
            number = float(weight) if colon else 1.0
        except ValueError:
            name, number = part, 1.0
        if not (math.isfinite(number) and number > 0):
            raise UserError(f"--data {text}: the weight of {name} must be above 0")
        names.append(name if colon and name != part else part)
        weights.append(number)
    return names, tuple(weights)


def open_run(
    run: RunDir,
    options: TrainOptions,
    fingerprints: dict[str, Any],
    sets: list[ShardSet],
    device: torch.device,
) -> None:
    """Make or continue the run, see `Run.open`; of several processes the first one holds it for all."""
    if distributed.is_main_process():
        run.open(
            options.model_dump(mode="json"), fingerprints, [each.folder for each in sets], device
        )
    run.start_step = distributed.broadcast_object(run.start_step)


def resolve_compute_plan(
    options: TrainOptions, run: RunDir, model: Llama, device: torch.device
) -> ComputePlan:
    """How to compute: what the first process chooses, with no more rows at once than each process has."""
    chosen = (
        asdict(_load_or_autotune_plan(options, run, model, device))
        if distributed.is_main_process()
        else {}
    )
    choices = ComputePlan(**distributed.broadcast_object(chosen))
    return replace(choices, micro_rows=min(choices.micro_rows, _rows_per_process(options)))


def _rows_per_process(options: TrainOptions) -> int:
    """Rows of a step in each process."""
    return options.batch_tokens // options.sequence_length // distributed.world_size()


def _load_or_autotune_plan(
    options: TrainOptions, run: RunDir, model: Llama, device: torch.device
) -> ComputePlan:
    """The run's own choices where they were made on such a device and nothing else was asked for; else measured."""
    kept = run.load_compute_plan()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    request = {
        "precision": options.precision,
        "compile": options.compile,
        "micro_batch": options.micro_batch,
    }
    if (
        kept
        and kept["asked"] == request
        and kept["choices"].keys() == ComputePlan.__dataclass_fields__.keys()
    ):
        compute_plan = ComputePlan(**kept["choices"])
        if compute_plan.device == name:
            return replace(compute_plan, compile=compute_plan.compile and can_compile(model))
    compute_plan = autotune(
        model,
        device,
        precision=options.precision,
        compile_mode=options.compile,
        micro_batch=options.micro_batch,
        rows_per_step=_rows_per_process(options),
        length=options.sequence_length,
    )
    run.save_compute_plan({"asked": request, "choices": asdict(compute_plan)})
    return compute_plan


def print_run_summary(
    options: TrainOptions,
    run: RunDir,
    model: Llama,
    compute_plan: ComputePlan,
    *,
    name: str,
    data: str,
    epochs: float,
    flops: float,
    has_validation_data: bool,
) -> None:
    """Say what will be trained, on what, at which cost, before it starts.

    `epochs` and `flops`: of the whole run; `has_validation_data`: whether there is anything to measure it on.
    """
    config = model.config
    print(
        f"model     {name}: {config.num_parameters / 1e6:.1f}M parameters, vocabulary {config.vocab_size:,}, "
        f"{config.flops_per_token(options.sequence_length) / 1e6:.1f} MFLOP per token"
    )
    if model.adapter is not None:
        lora = model.adapter.options
        print(
            f"adapter   LoRA of rank {lora.rank} (alpha {lora.alpha:g}, dropout {lora.dropout:g}) on "
            f"{', '.join(lora.targets)}: {count_trainable_parameters(model):,} parameters train, the rest is frozen"
        )
    print(f"data      {data}, {flops:.2e} FLOP")
    if epochs > MAX_USEFUL_EPOCHS:
        print(
            f"          text read {MAX_USEFUL_EPOCHS} times teaches next to nothing more: fewer steps or more data would do"
        )
    if not has_validation_data:
        print(
            "          nothing of it is held out: there will be no validation loss and no best checkpoint"
        )
    memory = estimate_process_bytes(model, compute_plan, options.sequence_length)
    print(
        f"machine   {compute_plan.device}, {compute_plan.precision}, {compute_plan.micro_rows} × {options.sequence_length} tokens at once"
        f" of {options.batch_tokens:,} a step, loss path {compute_plan.loss_path}"
        f"{', compiled' if compute_plan.compile else ''}; about {memory / 1e9:.1f} GB of memory"
    )
    if model.lm_head.weight.device.type == "cpu" and flops > 1e15:
        print(
            "          this is many hours of work for a CPU: fewer --max_steps or a smaller model end sooner"
        )
    if distributed.world_size() > 1:
        print(
            f"processes {distributed.world_size()} ({options.parallel}), {_rows_per_process(options)} rows of a step each"
        )
    before = f"continues after step {run.start_step}" if run.start_step is not None else "new"
    print(f"run       {run.folder} ({before})", flush=True)


def run_training(trainer: Trainer, hint: str) -> None:
    """Train, turn a full GPU or disk into one line, say how it ended. `hint`: what to do with a complete run."""
    folder = trainer.run.folder
    try:
        is_complete = trainer.train()
        trainer.close()
    except torch.cuda.OutOfMemoryError:
        rows = trainer.compute_plan.micro_rows
        raise UserError(
            f"the GPU's memory is full with {rows} rows at once: continue with a smaller --micro_batch, such as "
            f"{max(1, rows // 2)}"
        ) from None
    except Exception as error:
        if isinstance(error, OSError):
            trainer.run.check_exists()
        if (problem := describe_disk_error(error)) is None:
            raise
        raise UserError(
            f"{problem}, then run the same command again: it goes on from the last whole checkpoint in "
            f"{folder}"
        ) from None
    finally:
        # What went wrong has been said; a log that cannot be written any more has no more to say.
        with contextlib.suppress(OSError):
            trainer.close()
    step = trainer.state.step
    if not is_complete:
        print(
            f"saved after step {step} of {trainer.run_length.max_steps}; the same command goes on from there"
        )
        return
    early_stop_note = (
        " (no better score for a while: ended early)" if step < trainer.run_length.max_steps else ""
    )
    best = trainer.log.best_step(trainer.run_length.best_metric)
    best_said = ""
    if best is not None and best != step:
        how = (
            "which the run stands for now"
            if trainer.is_out_of_patience()
            else f"make chat RUN={folder}/checkpoints/best"
        )
        best_said = f", the best after step {best} ({how})"
    print(
        f"complete: {folder}, {step} steps{early_stop_note}{best_said}; peak memory of the process {peak_memory_bytes() / 1e9:.2f} GB. "
        f"{hint}"
    )


def build_common_fingerprints(options: TrainOptions) -> dict[str, Any]:
    """The fingerprints that every run has: what changes the order of data or the arithmetic of a step."""
    return {
        "seed": options.seed,
        "batch_tokens": options.batch_tokens,
        "sequence_length": options.sequence_length,
        "optimizer": options.optimizer.model_dump(),
        "schedule": options.schedule.model_dump(),
    }
