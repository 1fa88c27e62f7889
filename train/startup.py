"""Start a training run: parse its options, make a trainer of its description, and run it.

The way of both commands is

    options → RunSpec → start → run_training
"""

import contextlib
import math
import sys
from pathlib import Path
from typing import Any, TypeVar

import torch

from common.errors import UserError, describe_disk_error
from common.machine import peak_memory_bytes, resolve_device
from common.options import parse_options
from model.checkpoint import locate, weights
from model.llama import Llama
from model.lora import Adapter, attach_adapter
from train import distributed
from train.autotune import resolve_compute_plan
from train.options import TrainOptions
from train.run_dir import CONFIG_FILE, RunDir
from train.run_spec import RunSpec
from train.run_summary import print_run_summary
from train.trainer import Trainer

T = TypeVar("T", bound=TrainOptions)


def parse_train_options(schema: type[T], command: str, description: str) -> T:
    """Return the options of `python -m train.COMMAND`, on resume with those of the run."""

    def find_recorded_options(values: dict[str, Any]) -> Path | None:
        run = values["run"]
        folder = Path(str(run)) if run else default_run_folder(command, str(values["data"]))
        config = folder / CONFIG_FILE
        if not config.is_file():
            return None
        _check_command(folder, command)
        return config

    return parse_options(
        schema,
        sys.argv[1:],
        name=f"train.{command}",
        description=description,
        has_config_file=True,
        find_recorded_options=find_recorded_options,
    )


def _check_command(run: Path, command: str) -> None:
    """Raise UserError if the run belongs to the other command, which has other options."""
    if not (run / locate.RUN_FILE).is_file():
        return
    owner = locate.training_command(locate.read_fingerprints(run))
    if command == "sft" and owner == "pretrain":
        raise UserError(
            f"{run} is a pretraining run; to fine-tune its model: BASE={run} (--base {run})"
        )
    if command == "pretrain" and owner == "sft":
        raise UserError(
            f"{run} is a fine-tuning run; to resume it: make sft RUN={run}; to train its weights "
            f"on text: BASE={run} (--base {run}) and another RUN"
        )


def default_run_folder(command: str, data: str) -> Path:
    """Return the directory of a run without a name: other weights of a mixture are another run."""
    parts = []
    for name, weight in zip(*parse_mixture(data), strict=True):
        suffix = f"-{weight:g}" if weight != 1 else ""
        parts.append(Path(name).resolve().name + suffix)
    return locate.RUNS_DIR / f"{command}-{'+'.join(parts)}"


def parse_mixture(text: str) -> tuple[list[str], tuple[float, ...]]:
    """Return the names and weights of `wikipedia:0.5+zhihu`; the weight defaults to 1.

    Raises UserError for a weight that is not above 0.
    """
    names = []
    weights = []
    # A path with a plus or a colon in it is not a mixture.
    for part in [text] if Path(text).exists() else text.split("+"):
        name, colon, weight_text = part.rpartition(":")
        weight = 1.0
        if colon and name:
            try:
                weight = float(weight_text)
            except ValueError:
                name = part
        else:
            name = part
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"--data {text}: the weight of {name} must be above 0")
        names.append(name)
        weights.append(weight)
    return names, tuple(weights)


def resolve_device_for_training(options: TrainOptions) -> torch.device:
    """Return the device of this rank. Raises UserError if ranks cannot share the rows evenly."""
    distributed.check_rows_divisible(
        options.batch_tokens // options.sequence_length, options.sequence_length
    )
    return distributed.local_device(resolve_device(options.device))


def start(spec: RunSpec) -> Trainer:
    """Open the run directory and return the trainer of a new run, or of the rest of an old one.

    Raises UserError if the directory holds another run, see `RunDir.open`.
    """
    run = RunDir(spec.folder)
    _open_run_dir(run, spec)
    plan = spec.data.plan(spec.folder / "plan")
    model = build_model(spec, run.start_checkpoint)
    compute_plan = resolve_compute_plan(spec, run, model)
    print_run_summary(spec, run, model, plan, compute_plan)
    return Trainer(spec, run, model, plan, compute_plan)


def _open_run_dir(run: RunDir, spec: RunSpec) -> None:
    """Open the directory on the main process, which locks it for all ranks."""
    if distributed.is_main_process():
        run.open(spec.options.model_dump(mode="json"), spec.record, spec.device)
    run.start_step = distributed.broadcast_object(run.start_step)


def build_model(spec: RunSpec, checkpoint: Path | None) -> Llama:
    """Return the model in training mode, with the weights of `checkpoint`, the base, or a seed."""
    source = checkpoint or spec.base.folder
    if source is None:
        model = Llama(spec.model_config).init_weights(spec.options.seed).to(spec.device)
    elif spec.lora is None:
        model, _ = weights.load_checkpoint(source, spec.device)
    else:
        model = _build_adapter_model(spec, checkpoint)
    model.trained_context = spec.options.sequence_length
    return model.train()


def _build_adapter_model(spec: RunSpec, checkpoint: Path | None) -> Llama:
    assert spec.lora is not None
    base = spec.base.folder if checkpoint is None else locate.resolve_base(checkpoint)
    assert base is not None
    model, _ = weights.load_checkpoint(base, spec.device)
    attach_adapter(model, Adapter(spec.lora, base, spec.base.fingerprint), spec.options.seed)
    if checkpoint is not None:
        weights.load_weights(model, checkpoint)
    return model


def run_training(trainer: Trainer, hint: str) -> None:
    """Train, and print how the run ended; `hint` is what to do with a complete run.

    Raises UserError with advice where the memory of the GPU, or the disk, is full.
    """
    folder = trainer.run.folder
    try:
        is_complete = trainer.train()
        trainer.close()
    except torch.cuda.OutOfMemoryError:
        rows = trainer.compute_plan.micro_rows
        raise UserError(
            f"the GPU's memory is full with {rows} rows at once: resume with a smaller "
            f"--micro_batch, such as {max(1, rows // 2)}"
        ) from None
    except Exception as error:
        if isinstance(error, OSError):
            trainer.run.check_exists()
        problem = describe_disk_error(error)
        if problem is None:
            raise
        raise UserError(
            f"{problem}, then run the same command again: it resumes from the last whole "
            f"checkpoint in {folder}"
        ) from None
    finally:
        # The error above says what went wrong; a log on a full disk fails to close as well.
        with contextlib.suppress(OSError):
            trainer.close()
    step = trainer.state.step
    if not is_complete:
        print(
            f"saved after step {step} of {trainer.max_steps}; the same command resumes from there"
        )
        return
    early_stop = " (stopped early: no better score for a while)" if step < trainer.max_steps else ""
    print(
        f"complete: {folder}, {step} steps{early_stop}{_describe_best(trainer)}; peak memory of "
        f"the process {peak_memory_bytes() / 1e9:.2f} GB. {hint}"
    )


def _describe_best(trainer: Trainer) -> str:
    best = trainer.log.best_step(trainer.evaluator.metric)
    if best is None or best == trainer.state.step:
        return ""
    if trainer.is_out_of_patience():
        return f", the best after step {best} (which chat, evaluation and export now use)"
    return f", the best after step {best} (make chat RUN={trainer.run.folder}/checkpoints/best)"
