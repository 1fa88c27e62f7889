"""Checks of whole runs of `train.pretrain`: resume, devices, torchrun, overflow, out of memory.

The runs train the 3M model on about 20,000 generated tokens. A command is a fork of the process of
the check, which has imported everything and has not initialized CUDA.
"""

import functools
import importlib
import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import train.monitoring.throughput
from bench.gpu.context import ROOT, SMALL_CONFIG, Context
from common import run_layout
from common.errors import UserError, run_main
from common.files import atomic_folder
from common.metrics_file import read_metrics
from common.run_layout import list_steps, step_folder
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT
from model.checkpoint.locate import find_newest_step
from model.tokenizer import load_tokenizer
from train.autotune import ComputePlan
from train.options import PretrainOptions
from train.pretrain_run import resolve_run
from train.run.directory import RunDir
from train.run.start import build_model
from train.trainer import Trainer

# Steps of a run, and steps between its checkpoints.
STEPS, CHECKPOINT_EVERY = 12, 4
TOKENIZER = ROOT / "assets" / "tokenizer"
# Bound of the relative difference of losses between devices, or with torchrun. The Newton-Schulz
# iteration of Muon runs in bf16 and amplifies rounding errors.
LOSS_DIFFERENCE = 0.01
# What every device can compute, so that the losses of two devices are comparable.
EAGER_FP32 = {"precision": "fp32", "compile": "false"}
# Time that a late command has to end by itself; torchrun gives its processes 30 seconds.
_TERMINATION_SECONDS = 40
# Called in the process of a command before its `main`.
SetUp = Callable[[], None]


def prepare_shards(context: Context) -> Path:
    """Return a shard set of about 20,000 generated tokens; write it on the first call."""
    folder = context.work / "shards"
    if folder.is_dir():
        return folder
    tokenizer, rng = load_tokenizer(TOKENIZER), np.random.default_rng(0)
    manifest = {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}
    with atomic_folder(folder, manifest) as partial_folder:
        tokenizer.save(partial_folder)
        for split, num_documents in (("train", 200), ("validation", 8)):
            writer = SequenceWriter(partial_folder, split, tokenizer.vocab_size)
            for length in rng.integers(20, 200, num_documents):
                # Fifty ids in a regular order, so that there is something to learn.
                ids = 400 + (rng.integers(50) + 3 * np.arange(length - 2)) % 50
                writer.add(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id]))
            writer.close()
    return folder


@dataclass(frozen=True)
class CommandResult:
    """Exit code, stdout and stderr of a command that has ended."""

    exit_code: int
    stdout: str
    stderr: str


def run_command(
    context: Context,
    module: str,
    arguments: list[str],
    *,
    set_up: SetUp | None = None,
    timeout: float = 300,
) -> CommandResult:
    """Run `python -m MODULE ARGUMENTS` in a fork of this process, after `set_up()`.

    Raises UserError after `timeout` seconds, and ModuleNotFoundError if the command lacks a
    package.
    """
    assert not torch.cuda.is_initialized(), "a fork cannot use CUDA after this process has"
    files = [context.work / f"command-{os.getpid()}.{name}" for name in ("out", "err")]
    for file in files:
        file.write_text("")
    process = multiprocessing.get_context("fork").Process(
        target=_run_in_fork, args=(module, arguments, files, context.is_small, set_up)
    )
    process.start()
    process.join(timeout)
    is_late = process.exitcode is None
    if is_late:
        # torchrun ends the processes that it has started, but only if it is asked to end.
        process.terminate()
        process.join(_TERMINATION_SECONDS)
        process.kill()
        process.join()
    stdout, stderr = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    for file in files:
        file.unlink()
    # Into the log of the check.
    print(stdout, stderr, sep="\n", flush=True)
    if is_late:
        raise UserError(f"python -m {module} did not end within {timeout:.0f} s")
    assert process.exitcode is not None
    return check_packages(CommandResult(process.exitcode, stdout, stderr))


def check_packages(result: CommandResult) -> CommandResult:
    """Return the result. Raises ModuleNotFoundError if the command failed for lack of a package."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", result.stderr)
    if result.exit_code and missing:
        raise ModuleNotFoundError(missing[0], name=missing[1])
    return result


def _run_in_fork(
    module: str,
    arguments: list[str],
    output_files: list[Path],
    is_small: bool,
    set_up: SetUp | None,
) -> None:
    """Become `python -m MODULE ARGUMENTS` with stdout and stderr in `output_files`."""
    for file, descriptor in zip(output_files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), descriptor)
    # New objects, because those of the parent may hold output that it has not flushed.
    sys.stdout, sys.stderr = (
        os.fdopen(descriptor, "w", buffering=1, encoding="utf-8", closefd=False)
        for descriptor in (1, 2)
    )
    os.chdir(ROOT)
    sys.argv = [module, *arguments]
    if is_small:
        skip_matmul_rate()
    if set_up is not None:
        set_up()
    run_main(importlib.import_module(module).main)


def skip_matmul_rate() -> None:
    """Replace the measurement of the matmul rate, which takes longer than a small run."""
    train.monitoring.throughput.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]


def pretrain_arguments(context: Context, run: Path, device: str, *extra: str) -> list[str]:
    """Return the arguments of `train.pretrain` for a run of STEPS steps; `extra` override them."""
    options: dict[str, Any] = {
        "run": run,
        "data": prepare_shards(context),
        "device": device,
        "max_steps": STEPS,
        "sequence_length": 16 if context.is_small else 256,
        "batch_tokens": 64 if context.is_small else 2048,
        "micro_batch": 2 if context.is_small else 4,
        "checkpoint.every": CHECKPOINT_EVERY,
        "checkpoint.keep": STEPS,
        "evaluation.every": STEPS,
        "evaluation.sample_tokens": 4,
        "log_every": 1,
    }
    if context.is_small:
        options |= {f"model.{name}": value for name, value in SMALL_CONFIG.items()}
        options |= {"evaluation.tokens": 100, **EAGER_FP32}
    arguments: list[str] = []
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    return [*arguments, *extra]


def train_to_end(
    context: Context, run: Path, device: str, *extra: str, set_up: SetUp | None = None
) -> Path:
    """Train or resume the run in the folder `run` to its end, and return the folder.

    `extra` are more arguments of `train.pretrain`; `set_up` is called in its process first. Raises
    UserError if the command fails or leaves no checkpoint of the last step.
    """
    arguments = pretrain_arguments(context, run, device, *extra)
    result = run_command(context, "train.pretrain", arguments, set_up=set_up)
    if result.exit_code or find_newest_step(run) != STEPS:
        lines = (result.stderr or result.stdout).strip().splitlines() or ["no output"]
        raise UserError(
            f"training in {run.name} ended with exit code {result.exit_code}: {lines[-1][:300]}"
        )
    return run


def uninterrupted_run(
    context: Context, name: str, device: str, *extra: str, set_up: SetUp | None = None
) -> Path:
    """Return the folder of a run that was never interrupted, trained once for all checks.

    The run is known by `name` alone: a complete one is returned whatever the other arguments are.
    `extra` and `set_up` are those of `train_to_end`. Raises UserError as it does.
    """
    run = context.work / "runs" / name
    if run.is_dir() and find_newest_step(run) == STEPS:
        return run
    shutil.rmtree(run, ignore_errors=True)
    return train_to_end(context, run, device, *extra, set_up=set_up)


def copy_up_to_step(run: Path, name: str, step: int) -> Path:
    """Copy a run without its checkpoints after `step`, so that it resumes there.

    Resuming cuts the logs back to that step by itself.
    """
    copy = run.with_name(name)
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, symlinks=True)
    for later_step in list_steps(copy):
        if later_step > step:
            shutil.rmtree(step_folder(copy, later_step))
    return copy


def final_tensor_bytes(run: Path) -> list[bytes]:
    """Return the contents of the last checkpoint's files of weights and optimizer state."""
    folder = step_folder(run, STEPS)
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def read_losses(run: Path) -> dict[int, float]:
    """Return the training loss of each step."""
    return {
        record["step"]: record["loss"] for record in read_metrics(run) if record["kind"] == "train"
    }


def compare_losses(context: Context, name: str, run: Path, reference_run: Path) -> None:
    """Compare the losses of all steps of two runs; require that the loss of the reference fell."""
    losses, reference = read_losses(run), read_losses(reference_run)
    context.report.require(
        f"{name}: a loss for every step",
        sorted(losses) == sorted(reference) == list(range(1, STEPS + 1)),
    )
    largest_difference = max(
        abs(losses[step] - reference[step]) / reference[step] for step in reference
    )
    context.report.compare(
        f"{name}: largest relative difference of a loss", largest_difference, LOSS_DIFFERENCE
    )
    context.report.require(f"{name}: the loss fell", reference[STEPS] < reference[1])


def resume(context: Context) -> None:
    """Compare a resumed run with an uninterrupted one, bit by bit."""
    _compare_resumed(context, "resume", is_deterministic=False)


def resume_deterministic(context: Context) -> None:
    """Compare them with deterministic algorithms, where a difference can only be lost state."""
    _compare_resumed(context, "deterministic", is_deterministic=True)


def use_deterministic_algorithms() -> None:
    """Turn on the deterministic algorithms of torch; an operation without one warns."""
    # cuBLAS is deterministic with this setting only; see torch.use_deterministic_algorithms.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def _compare_resumed(context: Context, name: str, *, is_deterministic: bool) -> None:
    """Resume a run from its first checkpoint twice, and compare both with the uninterrupted run.

    `name` begins the names of the resumed runs' folders. With `is_deterministic`, every training
    process turns on deterministic algorithms.
    """
    device = context.device.type
    set_up = use_deterministic_algorithms if is_deterministic else None
    suffix = "-deterministic" if is_deterministic else ""
    whole = uninterrupted_run(context, f"whole-{device}{suffix}", device, set_up=set_up)
    # If the two resumed runs differ from each other, a kernel is nondeterministic. If they agree
    # but differ from the uninterrupted run, the checkpoint lost state.
    first, second = (
        train_to_end(
            context,
            copy_up_to_step(whole, f"{name}-{number}", CHECKPOINT_EVERY),
            device,
            set_up=set_up,
        )
        for number in (1, 2)
    )
    first_bytes = final_tensor_bytes(first)
    is_repeatable = first_bytes == final_tensor_bytes(second)
    is_exact = first_bytes == final_tensor_bytes(whole)
    context.report.require("two runs from one checkpoint end in the same bits", is_repeatable)
    if not is_repeatable:
        context.report.note(
            "the same steps from the same checkpoint give different bits: a kernel is "
            "nondeterministic, so no resume can be exact; resume-deterministic checks for lost "
            "state"
        )
    context.report.require("a resumed run ends in the bits of one that was never stopped", is_exact)
    compare_losses(context, "resumed", first, whole)


def across_devices(context: Context) -> None:
    """Compare a run that moves from the CPU to the device and back with one on the CPU alone."""
    device = context.device.type
    eager_fp32 = [word for name, value in EAGER_FP32.items() for word in (f"--{name}", value)]
    if context.is_small:
        context.report.note(
            "the device is the CPU: the run goes from one process to another and back"
        )
    # All small runs have these options, so that there the run is that of `resume`.
    cpu_name = "whole-cpu" if context.is_small else "whole-cpu-fp32"
    cpu_run = uninterrupted_run(context, cpu_name, "cpu", *eager_fp32)
    moved = copy_up_to_step(cpu_run, "there", CHECKPOINT_EVERY)
    train_to_end(context, moved, device, *eager_fp32)
    context.report.require("continues on the device", find_newest_step(moved) == STEPS)
    moved_back = copy_up_to_step(moved, "back", 2 * CHECKPOINT_EVERY)
    train_to_end(context, moved_back, "cpu", *eager_fp32)
    compare_losses(context, "on the device from the first checkpoint on", moved, cpu_run)
    compare_losses(context, "and back on the CPU from the second one on", moved_back, cpu_run)


def torchrun(context: Context) -> None:
    """Compare a run of one process under torchrun with one without it."""
    device = context.device.type
    reference = uninterrupted_run(context, f"whole-{device}", device)
    run = context.work / "runs" / "torchrun"
    shutil.rmtree(run, ignore_errors=True)
    arguments = [
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "--",
        "train.pretrain",
        *pretrain_arguments(context, run, device),
    ]
    # torchrun itself is a fork, like every command here; the process that trains is not.
    result = run_command(
        context, "torch.distributed.run", arguments, set_up=_add_root_to_python_path, timeout=200
    )
    context.report.require("exit code 0", result.exit_code == 0)
    if result.exit_code == 0:
        compare_losses(context, "under torchrun", run, reference)


def _add_root_to_python_path() -> None:
    """Let the interpreters that this process starts find the packages of the project."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def cap_gpu_memory(limit_bytes: int) -> None:
    """Limit the CUDA allocator of this process to `limit_bytes`."""
    device = torch.cuda.current_device()
    _, total_bytes = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total_bytes), device)


def cap_gpu_memory_before_training() -> None:
    """Let training find no free memory: limit it to what the micro-batch search left allocated."""
    original_train = Trainer.train

    def train_with_cap(trainer: Trainer) -> bool:
        torch.cuda.empty_cache()
        cap_gpu_memory(torch.cuda.memory_reserved())
        return original_train(trainer)

    Trainer.train = train_with_cap  # type: ignore[method-assign, assignment]


def out_of_memory(context: Context) -> None:
    """Run out of memory in the micro-batch search, and in training: one line, exit code 2."""
    # Half a GiB is too little for a micro-batch of a million tokens, which needs several GB; one of
    # 32,768 tokens needs a few hundred MB.
    large = (
        "--compile",
        "false",
        "--batch_tokens",
        str(2**20),
        "--micro_batch",
        str(2**12),
        "--max_steps",
        "1",
    )
    small = (
        "--compile",
        "false",
        "--batch_tokens",
        str(2**15),
        "--micro_batch",
        "128",
        "--max_steps",
        "2",
    )
    cases: list[tuple[str, tuple[str, ...], SetUp]] = [
        ("search", large, functools.partial(cap_gpu_memory, 2**29)),
        ("training", small, cap_gpu_memory_before_training),
    ]
    report = context.report
    for phase, sizes, set_up in cases:
        run = context.work / "runs" / f"oom-{phase}"
        shutil.rmtree(run, ignore_errors=True)
        arguments = pretrain_arguments(context, run, context.device.type, *sizes)
        result = run_command(context, "train.pretrain", arguments, set_up=set_up)
        errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
        has_traceback = "Traceback" in result.stderr
        report.require(f"in {phase}: exit code 2", result.exit_code == 2)
        report.require(f"in {phase}: one line of error", len(errors) == 1 and not has_traceback)
        report.require(
            f"in {phase}: it names the memory", any("memory" in error for error in errors)
        )
        report.note(f"in {phase}: {errors[0] if errors else 'no line of error'}")
    # The same run once more, without the limit.
    arguments = pretrain_arguments(
        context, context.work / "runs" / "oom-training", context.device.type, *small
    )
    result = run_command(context, "train.pretrain", arguments)
    report.require("the run continues once there is memory", result.exit_code == 0)


def overflow(context: Context) -> None:
    """Train in fp16 with too high a loss scale: steps are skipped until the scale fits."""
    if context.is_small:
        skip_matmul_rate()
    folder = context.work / "runs" / "overflow"
    shutil.rmtree(folder, ignore_errors=True)
    length, rows, num_steps = (16, 2, 16) if context.is_small else (256, 8, 40)
    small_evaluation = {"tokens": 100, "sample_tokens": 0} if context.is_small else {}
    spec = resolve_run(
        PretrainOptions.model_validate(
            {
                "run": folder,
                "data": str(prepare_shards(context)),
                "device": context.device.type,
                "model": SMALL_CONFIG if context.is_small else {},
                "max_steps": num_steps,
                "batch_tokens": rows * length,
                "sequence_length": length,
                "log_every": 1,
                "checkpoint": {"every": num_steps},
                "evaluation": {"every": num_steps, **small_evaluation},
            }
        )
    )
    run = RunDir(folder)
    run.open(spec.options.model_dump(mode="json"), spec.record, spec.device)
    # Built step by step, as `train.run.start` does, to have fp16 on any device and another scaler.
    model = build_model(spec, checkpoint=None)
    initial_head = model.lm_head.weight.detach().clone()
    compute_plan = ComputePlan(
        device=str(context.device),
        precision="fp16",
        compile=False,
        micro_rows=rows,
        loss_path="chunked",
    )
    trainer = Trainer(spec, run, model, spec.data.plan(folder / run_layout.PLAN_DIR), compute_plan)
    # So high that the first steps overflow. GradScaler halves the scale at each of them, and it has
    # to fit before the last five steps.
    initial_scale = 2.0**26 if context.is_small else 2.0**40
    trainer.scaler = torch.amp.GradScaler(context.device.type, init_scale=initial_scale)
    trainer.train()
    trainer.close()
    final_scale = trainer.scaler.get_scale()
    skipped_steps = {
        record["step"] for record in read_metrics(folder) if record["kind"] == "skipped"
    }
    last_steps = range(num_steps - 5, num_steps + 1)
    losses = list(read_losses(folder).values())  # of the steps that were not skipped, in order
    report = context.report
    report.figure("steps skipped", float(len(skipped_steps)))
    report.figure("scale at the end", final_scale)
    report.require("some steps overflow", bool(skipped_steps))
    report.require("the scale falls", final_scale < initial_scale)
    report.require("the last steps are taken", skipped_steps.isdisjoint(last_steps))
    report.require(
        "weights are finite",
        all(bool(parameter.isfinite().all()) for parameter in model.parameters()),
    )
    report.require("weights move", not torch.equal(initial_head, model.lm_head.weight))
    report.require("the loss falls", len(losses) > 1 and losses[-1] < losses[0])
