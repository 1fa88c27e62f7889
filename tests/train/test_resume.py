"""A stopped and resumed run equals the run that was never stopped, bit for bit."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.run_layout import list_steps, step_folder
from model.checkpoint.locate import find_newest_step
from model.tokenizer.base import Tokenizer
from tests.helpers.processes import CommandProcess, PauseAfterStep, run_command
from tests.helpers.training import (
    TINY_SHAPE,
    build_trainer,
    checkpoint_bytes,
    comparable_records,
    tensorboard_losses,
    to_arguments,
    truncate_tokenizer,
    write_text_set,
)

# The run that the others are compared with takes seconds in an interpreter of its own.
pytestmark = pytest.mark.slow

LAST_STEP = 20
OPTIONS = {
    "device": "cpu",
    "model": {**TINY_SHAPE, "num_key_value_heads": 2},
    "sequence_length": 64,
    "batch_tokens": 512,
    "micro_batch": 4,
    "max_steps": LAST_STEP,
    "optimizer": {"lr": 8e-3, "muon_lr": 4e-2},
    "checkpoint.every": 6,
    "evaluation.every": 5,
    "log_every": 3,
    "evaluation.sample_tokens": 2,
}


def arguments(run: Path, data: Path) -> list[str]:
    """Return the command line of the run."""
    return to_arguments({"run": run, "data": data, **OPTIONS})


def train(run: Path, data: Path) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return run_command("train.pretrain", *arguments(run, data))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """About 6,000 tokens: 20 steps of 512 cross an epoch border."""
    folder = tmp_path_factory.mktemp("data") / "text"
    return write_text_set(folder, truncate_tokenizer(tokenizer), train=60, validation=6)


@pytest.fixture(scope="module")
def whole(root: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, in an interpreter of its own, whose memory it prints."""
    run = tmp_path_factory.mktemp("whole") / "run"
    done = subprocess.run(
        [sys.executable, "-m", "train.pretrain", *arguments(run, data)],
        cwd=root,
        text=True,
        # Matmuls this small are no faster on two threads, and much slower beside other work.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    (run.parent / "output").write_text(done.stdout, encoding="utf-8")
    losses = [record["loss"] for record in comparable_records(run) if record["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    return run


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_is_bit_identical(data: Path, whole: Path, tmp_path: Path) -> None:
    """Catch steps that Ctrl-C loses, and a resumed run that is another run."""
    run = tmp_path / "run"
    process = CommandProcess("train.pretrain", *arguments(run, data), fault=PauseAfterStep(11))
    metrics = run / "metrics.jsonl"
    process.send_signal_when(
        signal.SIGINT, lambda: metrics.exists() and '"step": 9' in metrics.read_text()
    )
    stopped = process.wait()
    assert stopped.returncode == 130 and "resumes from there" in stopped.stdout, stopped
    step = find_newest_step(run)
    assert step in (9, 10, 11)
    done = train(run, data)
    assert done.returncode == 0 and f"continues after step {step}" in done.stdout, done.stderr
    assert checkpoint_bytes(run, LAST_STEP) == checkpoint_bytes(whole, LAST_STEP)
    assert comparable_records(run) == comparable_records(whole)


@pytest.mark.slow
def test_resume_in_bf16_is_bit_identical(tmp_path: Path, shard_set: Path) -> None:
    """Catch a resumed run whose narrow weights are not those of its checkpoint."""
    options: dict[str, Any] = {"precision": "bf16", "max_steps": 6, "checkpoint": {"every": 3}}
    whole = build_trainer(tmp_path / "whole", shard_set, **options)
    assert whole.train()
    whole.close()
    stopped = build_trainer(tmp_path / "stopped", shard_set, **options)
    for _ in range(3):
        stopped.train_step()
    stopped.save_checkpoint()
    stopped.close()
    resumed = build_trainer(tmp_path / "stopped", shard_set, **options)
    assert resumed.state.step == 3 and resumed.train()
    resumed.close()
    assert checkpoint_bytes(tmp_path / "stopped", 6) == checkpoint_bytes(tmp_path / "whole", 6)


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_previous(data: Path, whole: Path, tmp_path: Path) -> None:
    """Catch a run that resumes from a flipped byte, or refuses an older whole checkpoint."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    weights = step_folder(run, LAST_STEP) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    done = train(run, data)
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr
    assert checkpoint_bytes(run, LAST_STEP) == checkpoint_bytes(whole, LAST_STEP)
    assert comparable_records(run) == comparable_records(whole)


@pytest.mark.slow
def test_finished_run_is_reported_and_unchanged(data: Path, whole: Path) -> None:
    """Catch `make pretrain` that trains on, or fails, after the end."""
    before = checkpoint_bytes(whole, LAST_STEP), comparable_records(whole)
    done = train(whole, data)
    assert done.returncode == 0 and "complete" in done.stdout
    assert (checkpoint_bytes(whole, LAST_STEP), comparable_records(whole)) == before


def test_tensorboard_has_the_logged_metrics(whole: Path) -> None:
    """Catch a log that TensorBoard cannot show, or shows with other numbers."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    records = [record for record in comparable_records(whole) if record["kind"] == "train"]
    losses = {record["step"]: record["loss"] for record in records}
    assert tensorboard_losses(whole) == pytest.approx(losses, rel=1e-6)
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    train_metrics = ("lr", "grad_norm", "tokens_per_second", "mfu", "memory_bytes", "perplexity")
    validation_metrics = ("loss", "perplexity", "accuracy", "bits_per_character")
    expected = {f"train/{name}" for name in train_metrics}
    expected |= {f"validation/{name}" for name in validation_metrics}
    assert expected <= set(events.Tags()["scalars"])
    assert any(tag.startswith("sample/") for tag in events.Tags()["tensors"])


def test_rotation_keeps_last_and_best_checkpoints(whole: Path) -> None:
    """Prevent a disk full of checkpoints, and a best one that is deleted."""
    scores = []
    for record in comparable_records(whole):
        if record["kind"] == "validation":
            scores.append((record["loss"], record["step"]))
    assert [step for _, step in scores] == [5, 10, 15, 20]
    assert list_steps(whole) == sorted({18, 20, min(scores)[1]})


def test_memory_estimate_is_close_to_actual(whole: Path) -> None:
    """Catch an estimate of the model alone, where the process needs several times as much."""
    output = (whole.parent / "output").read_text(encoding="utf-8")
    gigabytes = []
    for prefix in ("about", "of the process"):
        match = re.search(rf"{prefix} (\d+\.\d+) GB", output)
        assert match is not None, output
        gigabytes.append(float(match[1]))
    estimate, peak = gigabytes
    assert peak / 1.5 < estimate < 1.5 * peak
