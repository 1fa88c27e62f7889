"""Start a training run: make a trainer from its `RunSpec`, and train.

Each training command resolves its options into a `RunSpec`, passes it to `start`, and passes the
trainer that it gets to `run_training`.
"""

import contextlib
import shlex
from pathlib import Path

import torch

from common import run_layout
from common.errors import UserError, describe_disk_error
from common.machine import peak_memory_bytes, resolve_device
from model.bitsandbytes import require_bitsandbytes
from model.checkpoint import locate, weights
from model.checkpoint.quantized import load_quantized
from model.decode.free_processors import keep_all_threads
from model.llama import Llama
from model.lora import Adapter, attach_adapter
from model.precision import DTYPES
from model.reading_heads import init_reading_heads
from model.recomputation import Checkpointing
from train import distributed
from train.autotune import resolve_compute_plan
from train.monitoring.memory_plan import plan_memory
from train.monitoring.memory_savings import suggest_fit
from train.monitoring.run_memory import (
    available_memory_bytes,
    describe_step,
    measure_process_bytes,
)
from train.options import TrainOptions
from train.run.directory import RunDir
from train.run.spec import RunSpec
from train.run.summary import print_run_summary
from train.trainer import Trainer


def resolve_device_for_training(options: TrainOptions) -> torch.device:
    """Return the device of this rank.

    Raises UserError if the ranks cannot share the rows of a step evenly, if the device does not
    exist, or if an option needs a package that is not installed.
    """
    if (option := options.bitsandbytes_option) is not None:
        require_bitsandbytes(option)
    distributed.check_rows_divisible(options.rows_per_step, options.sequence_length)
    return distributed.local_device(resolve_device(options.device))


def start(spec: RunSpec) -> Trainer:
    """Open the run directory, print a summary, and return the trainer of a new or resumed run.

    Raises UserError if the directory holds another run, see `RunDir.open`.
    """
    keep_all_threads()
    run = RunDir(spec.folder)
    _open_run_dir(run, spec)
    plan = spec.data.plan(spec.folder / run_layout.PLAN_DIR)
    model = build_model(spec, run.start_checkpoint)
    compute_plan = resolve_compute_plan(spec, run, model)
    # Measured now: what an objective computes grows the heap, which training uses again.
    process_bytes = measure_process_bytes(model)
    spec.objective.prepare(
        spec.folder,
        # A new run has its initial model already: another one would be twice the memory.
        lambda: model if run.start_checkpoint is None else _rebuild_initial_model(spec),
        precision=compute_plan.precision,
        micro_rows=compute_plan.micro_rows,
    )
    workload = describe_step(spec, model, compute_plan, plan.batches)
    peak_bytes = plan_memory(workload, process_bytes).peak_bytes
    advice = suggest_fit(workload, process_bytes, available_memory_bytes(spec.device))
    print_run_summary(spec, run, model, plan, compute_plan, peak_bytes, advice)
    return Trainer(spec, run, model, plan, compute_plan)


def _open_run_dir(run: RunDir, spec: RunSpec) -> None:
    """Open the directory on the main process, which locks it for all ranks."""
    if distributed.is_main_process():
        run.open(spec.options.model_dump(mode="json"), spec.record, spec.device)
    run.start_step = distributed.broadcast_object(run.start_step)


def build_model(spec: RunSpec, checkpoint: Path | None) -> Llama:
    """Return the model in training mode, on its device.

    It has the weights of `checkpoint` on resume, otherwise those of the base or, without a base,
    random weights.
    """
    weights_folder = checkpoint or spec.base.folder
    if weights_folder is None:
        model = Llama(spec.model_config).init_weights(spec.options.seed)
        if spec.model_config.reading_heads:
            init_reading_heads(model, spec.tokenizer, spec.options.seed)
        model = model.to(spec.device)
    elif spec.lora is None:
        model, _ = weights.load_checkpoint(weights_folder, spec.device)
    else:
        model = _build_adapter_model(spec, checkpoint)
    # The run may extend the context of its base, and train its reading heads like other weights.
    model.set_context(spec.model_config)
    # A tokenizer may also have gaps between its ids.
    weights.set_unused_ids(model, spec.tokenizer)
    # Saved with the weights: generation and evaluation use prompts and rows of this length.
    model.trained_context = spec.options.sequence_length
    model.model.set_checkpointing(_resolve_checkpointing(spec.options))
    return model.train()


def _resolve_checkpointing(options: TrainOptions) -> Checkpointing | None:
    """Return what training keeps of each layer, or None if it keeps everything."""
    if options.gradient_checkpointing == "none":
        return None
    return Checkpointing(
        keeps_attention=options.gradient_checkpointing == "attention",
        offloads=options.offload_activations,
    )


def _rebuild_initial_model(spec: RunSpec) -> Llama:
    """Return the model that a resumed run started from. Raises UserError if its base is gone."""
    base = spec.base.folder
    if base is not None and not base.is_dir():
        raise UserError(
            f"{spec.folder}: its base, {base}, is gone, and needed again: put it back. Of what was "
            "computed with it before the first step, a file is missing, damaged, or of another "
            "--precision or --evaluation.examples, or --grpo.kl compares with the base itself"
        )
    return build_model(spec, None)


def _build_adapter_model(spec: RunSpec, checkpoint: Path | None) -> Llama:
    """Return the frozen base with an adapter: that of `checkpoint` on resume, otherwise a new one.

    Raises UserError if the base of the checkpoint is missing or has changed.
    """
    assert spec.lora is not None
    base = spec.base.folder if checkpoint is None else locate.resolve_base(checkpoint)
    assert base is not None
    if spec.quantize is None:
        model, _ = weights.load_checkpoint(base, spec.device)
    else:
        model = load_quantized(base, spec.device, DTYPES[spec.precision])
    adapter = Adapter(spec.lora, base, spec.base.fingerprint, spec.quantize)
    attach_adapter(model, adapter, spec.options.seed)
    if checkpoint is not None:
        weights.load_weights(model, checkpoint)
    return model


def run_training(trainer: Trainer, hint: str) -> int:
    """Train, print how the run ended, and return the exit code of the command.

    It is 0 if the run is complete, and above 128 if a signal stopped it, so that a script does not
    go on with an unfinished model. `hint` tells the user what to do with a complete run. Raises
    UserError with advice if the memory of the GPU, or the disk, is full.
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
        # If the run directory is gone, say so rather than report the file that failed.
        if isinstance(error, OSError):
            trainer.run.check_exists()
        # The description of a disk error ends with the remedy.
        problem = describe_disk_error(error)
        if problem is None:
            raise
        raise UserError(
            f"{problem}, then run the same command again: it resumes from the last whole "
            f"checkpoint in {folder}"
        ) from None
    finally:
        # On a full disk closing the log fails too; the first error is the one to report.
        with contextlib.suppress(OSError):
            trainer.close()
    step = trainer.state.step
    if not is_complete:
        print(
            f"saved after step {step} of {trainer.max_steps}; the same command resumes from there"
        )
        return trainer.stop_exit_code
    early_stop = " (stopped early: no better score for a while)" if step < trainer.max_steps else ""
    print(
        f"complete: {folder}, {step} steps{early_stop}{_describe_best(trainer)}; peak memory of "
        f"the process {peak_memory_bytes() / 1e9:.2f} GB. {hint}"
    )
    return 0


def _describe_best(trainer: Trainer) -> str:
    """Return a note about the best checkpoint, empty if it is the last one."""
    best_step = trainer.log.best_step(trainer.evaluator.metric)
    if best_step is None or best_step == trainer.state.step:
        return ""
    # Only a run that stopped early resolves to its best checkpoint, all others to their last.
    if trainer.is_out_of_patience():
        return f", best checkpoint: step {best_step} (which chat, evaluation and export now use)"
    run_argument = shlex.quote(f"RUN={trainer.run.folder}/checkpoints/best")
    return f", best checkpoint: step {best_step} (make chat {run_argument})"
