"""Checks of whole runs of `train.pretrain`: resume, devices, torchrun, overflow, out of memory.

The runs have the 3M shape and a few thousand generated tokens. A command is a fork of the process
of the check, which has imported everything and not yet initialized CUDA.
"""

import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import train.monitoring.throughput
from bench.gpu.context import ROOT, SMALL, Context
from common import run_layout
from common.errors import UserError, run_main
from common.files import atomic_folder
from common.metrics_file import read_metrics
from common.run_layout import list_steps, step_folder
from data.sequences import ShardWriter
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
STEPS, EVERY = 12, 4
TOKENIZER = ROOT / "assets" / "tokenizer"
# Bound of the relative difference of losses between devices, or with torchrun. The Newton-Schulz
# iteration of Muon runs in bf16 and amplifies rounding errors.
LOSSES = 0.01
Prepare = Callable[[], None]


def shards(context: Context) -> Path:
    """Return a shard set of about 20,000 generated tokens; prepare it on the first call."""
    folder = context.work / "shards"
    if folder.is_dir():
        return folder
    tokenizer, draw = load_tokenizer(TOKENIZER), np.random.default_rng(0)
    with atomic_folder(folder, {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}) as made:
        tokenizer.save(made)
        for split, count in (("train", 200), ("validation", 8)):
            writer = ShardWriter(made, split, tokenizer.vocab_size)
            for length in draw.integers(20, 200, count):
                # A few characters in a regular order: something to learn.
                ids = 400 + (draw.integers(50) + 3 * np.arange(length - 2)) % 50
                writer.add(np.array([tokenizer.bos_id, *ids, tokenizer.eos_id]))
            writer.close()
    return folder


@dataclass(frozen=True)
class Finished:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def command(
    context: Context,
    module: str,
    words: list[str],
    *,
    prepare: Prepare | None = None,
    timeout: float = 300,
) -> Finished:
    """Run `python -m MODULE WORDS` in a fork, after `prepare()`.

    Raises NotRun if a package is missing.
    """
    assert not torch.cuda.is_initialized(), "a fork cannot use CUDA after this process has"
    files = [context.work / f"command-{os.getpid()}.{name}" for name in ("out", "err")]
    for file in files:
        file.write_text("")
    process = multiprocessing.get_context("fork").Process(
        target=_main, args=(module, words, files, context.small, prepare)
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise UserError(f"python -m {module} did not end within {timeout:.0f} s")
    out, err = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    for file in files:
        file.unlink()
    print(out, err, sep="\n", flush=True)
    return finished(process.exitcode, out, err)


def finished(code: int, out: str, err: str) -> Finished:
    """Return the outcome of a command. Raises ModuleNotFoundError if it lacks a package."""
    missing = re.search(r"ModuleNotFoundError: No module named '([\w.]+)'", err)
    if code and missing:
        raise ModuleNotFoundError(missing[0], name=missing[1])
    return Finished(code, out, err)


def _main(
    module: str, words: list[str], files: list[Path], small: bool, prepare: Prepare | None
) -> None:
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, encoding="utf-8", closefd=False) for number in (1, 2)
    )
    os.chdir(ROOT)
    sys.argv = [module, *words]
    if small:
        skip_rate()
    if prepare is not None:
        prepare()
    run_main(importlib.import_module(module).main)


def skip_rate() -> None:
    """Skip the measurement of the matmul rate, which takes longer than a small run."""
    train.monitoring.throughput.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]


def words(context: Context, run: Path, device: str, *more: str) -> list[str]:
    """Return the command line of a run of STEPS steps."""
    shape = (
        [word for key, value in SMALL.items() for word in (f"--model.{key}", str(value))]
        if context.small
        else []
    )
    sizes = (
        {"sequence_length": 64, "batch_tokens": 512}
        if context.small
        else {"sequence_length": 256, "batch_tokens": 2048}
    )
    options = {
        **sizes,
        "max_steps": STEPS,
        "micro_batch": 4,
        "checkpoint.every": EVERY,
        "checkpoint.keep": STEPS,
        "evaluation.every": STEPS,
        "evaluation.sample_tokens": 4,
        "log_every": 1,
    }
    return [
        "--run",
        str(run),
        "--data",
        str(shards(context)),
        "--device",
        device,
        *shape,
        *(word for key, value in options.items() for word in (f"--{key}", str(value))),
        *more,
    ]


def train_run(
    context: Context, run: Path, device: str, *more: str, prepare: Prepare | None = None
) -> Path:
    """Train or resume a run to its end; return its folder. Raises UserError if it fails."""
    done = command(context, "train.pretrain", words(context, run, device, *more), prepare=prepare)
    if done.code or find_newest_step(run) != STEPS:
        last = (done.err or done.out).strip().splitlines()[-1:] or ["no output"]
        raise UserError(f"training in {run.name} ended with exit code {done.code}: {last[0][:300]}")
    return run


def whole_run(
    context: Context, name: str, device: str, *more: str, prepare: Prepare | None = None
) -> Path:
    """Return a run without interruption, trained once for all checks."""
    run = context.work / "runs" / name
    if run.is_dir() and find_newest_step(run) == STEPS:
        return run
    shutil.rmtree(run, ignore_errors=True)
    return train_run(context, run, device, *more, prepare=prepare)


def cut_copy(source: Path, name: str, step: int) -> Path:
    """Return a copy of a run in its state at the checkpoint of `step`."""
    target = source.with_name(name)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)
    for later in list_steps(target):
        if later > step:
            shutil.rmtree(step_folder(target, later))
    return target


def tensors(run: Path) -> list[bytes]:
    """Return the tensor files of the last checkpoint."""
    folder = step_folder(run, STEPS)
    return [(folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors")]


def losses(run: Path) -> dict[int, float]:
    """Return the training loss of each step."""
    return {
        record["step"]: record["loss"] for record in read_metrics(run) if record["kind"] == "train"
    }


def compare_losses(
    context: Context, name: str, run: Path, reference: Path, bound: float = LOSSES
) -> None:
    """Compare the losses of all steps of two runs; require that the loss fell in the reference."""
    mine, expected = losses(run), losses(reference)
    context.report.require(
        f"{name}: a loss for every step",
        sorted(mine) == sorted(expected) == list(range(1, STEPS + 1)),
    )
    worst = max(abs(mine[step] - expected[step]) / expected[step] for step in expected)
    context.report.compare(f"{name}: largest relative difference of a loss", worst, bound)
    context.report.require(f"{name}: the loss fell", expected[STEPS] < expected[1])


def resume(context: Context) -> None:
    """Compare a resumed run with an uninterrupted one, bit by bit."""
    _resume(context, "resume", None)


def resume_deterministic(context: Context) -> None:
    """Compare the same with deterministic algorithms: a difference is lost state."""
    _resume(context, "deterministic", deterministic)


def deterministic() -> None:
    """Turn on the deterministic algorithms of torch; an operation without one warns."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)


def _resume(context: Context, name: str, prepare: Prepare | None) -> None:
    device = context.device.type
    whole = whole_run(
        context, f"whole-{device}{'-deterministic' if prepare else ''}", device, prepare=prepare
    )
    first, second = (
        train_run(context, cut_copy(whole, f"{name}-{number}", EVERY), device, prepare=prepare)
        for number in (1, 2)
    )
    same_again, same = tensors(first) == tensors(second), tensors(first) == tensors(whole)
    context.report.require("two runs from one checkpoint end in the same bits", same_again)
    if not same_again:
        context.report.note(
            "the same steps from the same checkpoint give other bits: a kernel sums in a changing "
            "order, so that no resume can be exact; resume-deterministic checks for lost state"
        )
    context.report.require("a resumed run ends in the bits of one that was never stopped", same)
    compare_losses(context, "resumed", first, whole)


def across_devices(context: Context) -> None:
    """Compare a run on the CPU, then the device, then the CPU with one on the CPU alone."""
    device, plain = context.device.type, ("--precision", "fp32", "--compile", "false")
    if context.small:
        context.report.note(
            "the device is the CPU: the run goes from one process to another and back"
        )
    stays = whole_run(context, "whole-cpu-fp32", "cpu", *plain)
    there = train_run(context, cut_copy(stays, "there", EVERY), device, *plain)
    context.report.require("goes on on the device", find_newest_step(there) == STEPS)
    back = train_run(context, cut_copy(there, "back", 2 * EVERY), "cpu", *plain)
    compare_losses(context, "on the device from the first checkpoint on", there, stays)
    compare_losses(context, "and back on the CPU from the second one on", back, stays)


def torchrun(context: Context) -> None:
    """Compare a run of one process under torchrun with one without it."""
    device = context.device.type
    reference = whole_run(context, f"whole-{device}", device)
    run = context.work / "runs" / "torchrun"
    shutil.rmtree(run, ignore_errors=True)
    call = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "1",
        "-m",
        "--",
        "train.pretrain",
        *words(context, run, device),
    ]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        call,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    ended = finished(done.returncode, done.stdout, done.stderr)
    context.report.require("exit code 0", ended.code == 0)
    if ended.code == 0:
        compare_losses(context, "under torchrun", run, reference)


@dataclass(frozen=True)
class Capped:
    """Cap the GPU memory of this process."""

    bytes: int

    def __call__(self) -> None:
        """Set the cap."""
        cap_memory(self.bytes)


def cap_memory(size: int) -> None:
    """Cap the CUDA allocator of this process at `size` bytes."""
    device = torch.cuda.current_device()
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), device)


def fill_before_training() -> None:
    """Cap the memory when training begins, after the micro-batch search."""
    real = Trainer.train

    def train_capped(trainer: Trainer) -> bool:
        torch.cuda.empty_cache()
        cap_memory(torch.cuda.memory_reserved())
        return real(trainer)

    Trainer.train = train_capped  # type: ignore[method-assign, assignment]


def out_of_memory(context: Context) -> None:
    """Run out of memory in the micro-batch search, and in training: one line, exit code 2."""
    # A million tokens in a micro-batch need several GB, 32,768 a few hundred MB.
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
    cases: list[tuple[str, tuple[str, ...], Prepare]] = [
        ("in the search", large, Capped(2**29)),
        ("in training", small, fill_before_training),
    ]
    for name, more, prepare in cases:
        run = context.work / "runs" / f"oom-{name.split()[-1]}"
        shutil.rmtree(run, ignore_errors=True)
        done = command(
            context,
            "train.pretrain",
            words(context, run, context.device.type, *more),
            prepare=prepare,
        )
        lines = [line for line in done.err.splitlines() if line.startswith("error:")]
        context.report.require(f"{name}: exit code 2", done.code == 2)
        context.report.require(
            f"{name}: one line of error", len(lines) == 1 and "Traceback" not in done.err
        )
        context.report.require(
            f"{name}: it names the memory", any("memory" in line for line in lines)
        )
        context.report.note(f"{name}: {lines[0] if lines else 'no line of error'}")
    again = words(context, context.work / "runs" / "oom-training", context.device.type, *small)
    done = command(context, "train.pretrain", again)
    context.report.require("the run goes on where there is memory again", done.code == 0)


def overflow(context: Context) -> None:
    """Train in fp16 with too high a loss scale: steps are skipped until the scale fits."""
    if context.small:
        skip_rate()
    folder = context.work / "runs" / "overflow"
    shutil.rmtree(folder, ignore_errors=True)
    length, rows, last = (32, 4, 24) if context.small else (256, 8, 40)
    spec = resolve_run(
        PretrainOptions.model_validate(
            {
                "run": folder,
                "data": str(shards(context)),
                "device": context.device.type,
                "model": SMALL if context.small else {},
                "max_steps": last,
                "batch_tokens": rows * length,
                "sequence_length": length,
                "log_every": 1,
                "checkpoint": {"every": last},
                "evaluation": {"every": last},
            }
        )
    )
    run = RunDir(folder)
    run.open(spec.options.model_dump(mode="json"), spec.record, spec.device)
    model = build_model(spec, None)
    before = model.lm_head.weight.detach().clone()
    compute_plan = ComputePlan(
        device=str(context.device),
        precision="fp16",
        compile=False,
        micro_rows=rows,
        loss_path="chunked",
    )
    trainer = Trainer(spec, run, model, spec.data.plan(folder / run_layout.PLAN_DIR), compute_plan)
    start = 2.0**32 if context.small else 2.0**40
    trainer.scaler = torch.amp.GradScaler(context.device.type, init_scale=start)
    trainer.train()
    trainer.close()
    skipped = [record["step"] for record in read_metrics(folder) if record["kind"] == "skipped"]
    found = losses(folder)
    report = context.report
    report.figure("steps skipped", float(len(skipped)))
    report.figure("scale at the end", trainer.scaler.get_scale())
    report.require("some steps overflow", bool(skipped))
    report.require("the scale falls", trainer.scaler.get_scale() < start)
    report.require("the last steps are taken", not set(skipped) & set(range(last - 5, last + 1)))
    report.require(
        "weights are finite", all(bool(each.isfinite().all()) for each in model.parameters())
    )
    report.require("weights move", not torch.equal(before, model.lm_head.weight))
    report.require("the loss falls", len(found) > 1 and found[max(found)] < found[min(found)])
