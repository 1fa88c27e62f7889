"""Start a training run: parse its options, make a trainer of its description, and run it.

The way of both commands is

    options → RunSpec → start → run_training
"""

import contextlib
from pathlib import Path

import torch

from common import run_layout
from common.errors import UserError, describe_disk_error
from common.machine import peak_memory_bytes, resolve_device
from model.checkpoint import locate, weights
from model.llama import Llama
from model.lora import Adapter, attach_adapter
from train import distributed
from train.autotune import resolve_compute_plan
from train.options import TrainOptions
from train.run.directory import RunDir
from train.run.spec import RunSpec
from train.run.summary import print_run_summary
from train.trainer import Trainer


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
    plan = spec.data.plan(spec.folder / run_layout.PLAN_DIR)
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
