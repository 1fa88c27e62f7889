"""A run that was stopped and goes on is the run that was never stopped: real processes, compared bit for bit."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import atomic_folder
from common.run_layout import step_folder
from data.sequences import ShardWriter
from data.shards import SHARD_FORMAT
from model.checkpoint.locate import find_newest_step
from model.tokenizer.base import Tokenizer
from tests.helpers import processes

# Times and speeds are the only fields that may differ.
CLOCKS = {"tokens_per_second", "mfu", "memory_bytes"}


def words(root: Path, run: Path, data: Path, *more: str) -> list[str]:
    shape = [
        "--model.hidden_size",
        "32",
        "--model.intermediate_size",
        "64",
        "--model.num_hidden_layers",
        "2",
        "--model.num_attention_heads",
        "4",
        "--model.num_key_value_heads",
        "2",
    ]
    sizes = [
        "--sequence_length",
        "64",
        "--batch_tokens",
        "512",
        "--micro_batch",
        "4",
        "--max_steps",
        "40",
    ]
    often = [
        "--checkpoint.every",
        "7",
        "--evaluation.every",
        "10",
        "--log_every",
        "3",
        "--evaluation.sample_tokens",
        "4",
    ]
    return [
        "--run",
        str(run),
        "--data",
        str(data),
        "--device",
        "cpu",
        *shape,
        *sizes,
        *often,
        *more,
    ]


def train(root: Path, run: Path, data: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return processes.run_command("train.pretrain", *words(root, run, data, *more))


def tensors(run: Path, step: int = 40) -> tuple[bytes, bytes]:
    folder = step_folder(run, step)
    return (folder / "model.safetensors").read_bytes(), (
        folder / "optimizer.safetensors"
    ).read_bytes()


def records(run: Path) -> list[dict[str, Any]]:
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    return [{k: v for k, v in json.loads(line).items() if k not in CLOCKS} for line in lines]


def shards(folder: Path, tokenizer: Tokenizer, **counts: int) -> Path:
    """A shard set with so many sequences in each split."""
    draw = np.random.default_rng(0)
    with atomic_folder(folder, {"format": SHARD_FORMAT, "kind": "documents", "splits": {}}) as made:
        (made / "tokenizer.model").write_bytes(tokenizer.serialized)
        for split, count in counts.items():
            writer = ShardWriter(made, split, tokenizer.vocab_size)
            for length in draw.integers(10, 200, count):
                writer.add(400 + (draw.integers(50) + 3 * np.arange(length)) % 50)
            writer.close()
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    # About 12,000 tokens: 40 steps of 512 cross an epoch border.
    return shards(tmp_path_factory.mktemp("data") / "shards", tokenizer, train=120, validation=6)


@pytest.fixture(scope="module")
def whole(root: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped, of a Python of its own: what it says of its memory is looked at."""
    run = tmp_path_factory.mktemp("whole") / "run"
    # Two tiny matmuls at a time run no faster on two threads, and much slower beside other work.
    done = subprocess.run(
        [sys.executable, "-m", "train.pretrain", *words(root, run, data)],
        cwd=root,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stdout
    (run.parent / "said").write_text(done.stdout, encoding="utf-8")
    losses = [record["loss"] for record in records(run) if record["kind"] == "train"]
    assert losses[-1] < 0.7 * losses[0]
    return run


def stop(root: Path, run: Path, data: Path, number: int, after: int) -> tuple[int, str]:
    """Start the run and send it a signal as soon as the log shows step `after`, and no later than two steps after that."""
    process = processes.CommandProcess(
        "train.pretrain", *words(root, run, data), fault=processes.PauseAfterStep(after + 2)
    )
    metrics = run / "metrics.jsonl"
    process.send_signal_when(
        number,
        lambda: metrics.exists() and f'"step": {after}' in metrics.read_text(encoding="utf-8"),
    )
    done = process.wait()
    return done.returncode, done.stdout


@pytest.mark.slow
def test_ctrl_c_saves_and_resume_is_bit_identical(
    root: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Steps lost at Ctrl-C; a continuation that is another run."""
    run = tmp_path / "run"
    code, out = stop(root, run, data, signal.SIGINT, after=12)
    assert code == 0 and "resumes from there" in out, out
    stopped = find_newest_step(run)
    assert stopped in (12, 13, 14)
    done = train(root, run, data)
    assert done.returncode == 0 and f"continues after step {stopped}" in done.stdout, done.stderr
    assert tensors(run) == tensors(whole)
    assert records(run) == records(whole)


@pytest.mark.slow
def test_sigkill_resume_from_last_checkpoint_is_bit_identical(
    root: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Doubled or missing steps after a crash; kills at every other moment: tests/reliability/test_kill.py."""
    run = tmp_path / "run"
    code, _ = stop(root, run, data, signal.SIGKILL, 21)
    assert code == -signal.SIGKILL
    assert train(root, run, data).returncode == 0
    assert tensors(run) == tensors(whole)
    assert records(run) == records(whole)
    # What was not flushed when the process was killed must be in TensorBoard all the same.
    assert board(run) == board(whole)


def board(run: Path) -> dict[int, float]:
    """The training losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("train/loss")}


@pytest.mark.slow
def test_damaged_checkpoint_falls_back_to_previous(
    root: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Going on from a flipped byte, or refusing a run that has an older good checkpoint."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = find_newest_step(run)
    weights = step_folder(run, 40) / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    done = train(root, run, data)
    assert done.returncode == 0, done.stderr
    assert "is damaged" in done.stderr and before == 40
    assert tensors(run) == tensors(whole)
    assert records(run) == records(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (["--seed", "7"], "another seed"),
        (["--max_steps", "50"], "another max_steps"),
        (["--batch_tokens", "1024"], "another batch_tokens"),
        (["--model.hidden_size", "64"], "another model"),
        (["--optimizer.lr", "0.5"], "another optimizer"),
    ],
)
def test_different_run_with_same_name_is_refused(
    root: Path, data: Path, whole: Path, change: list[str], said: str
) -> None:
    """A continuation that silently is something else."""
    done = train(root, whole, data, *change)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_finished_run_is_reported_and_unchanged(root: Path, data: Path, whole: Path) -> None:
    """`make pretrain` after the end training on, or failing."""
    before = tensors(whole), records(whole)
    done = train(root, whole, data)
    assert done.returncode == 0 and "complete" in done.stdout
    assert (tensors(whole), records(whole)) == before


@pytest.mark.slow
def test_run_directory_is_locked(root: Path, data: Path, tmp_path: Path) -> None:
    """A second `make pretrain` removing the checkpoint that the first is writing."""
    import fcntl

    run = tmp_path / "run"
    run.mkdir()
    with (run / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = train(root, run, data)
    assert done.returncode == 2 and "being trained by another process" in done.stderr


@pytest.mark.slow
def test_foreign_folder_is_not_modified(root: Path, data: Path, tmp_path: Path) -> None:
    """`--run ~/thesis` filled with checkpoints."""
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    done = train(root, tmp_path, data)
    assert done.returncode == 2 and "is not a run" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_tensorboard_has_the_logged_metrics(whole: Path) -> None:
    """A log that TensorBoard cannot show, or that shows other numbers than metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(whole / "tensorboard"))
    board.Reload()
    train_records = [record for record in records(whole) if record["kind"] == "train"]
    shown = {event.step: event.value for event in board.Scalars("train/loss")}
    assert shown == pytest.approx(
        {record["step"]: record["loss"] for record in train_records}, rel=1e-6
    )
    scalars = set(board.Tags()["scalars"])
    assert {
        "train/lr",
        "train/grad_norm",
        "train/tokens_per_second",
        "train/mfu",
        "train/memory_bytes",
        "train/perplexity",
        "validation/loss",
        "validation/perplexity",
        "validation/accuracy",
        "validation/bits_per_character",
    } <= scalars
    assert any(tag.startswith("sample/") for tag in board.Tags()["tensors"])


def test_rotation_keeps_last_and_best_checkpoints(whole: Path) -> None:
    """A disk filled with checkpoints, or the best one deleted."""
    from common.run_layout import list_steps

    scored = [
        (record["loss"], record["step"])
        for record in records(whole)
        if record["kind"] == "validation"
    ]
    assert [step for _, step in scored] == [10, 20, 30, 40]
    assert list_steps(whole) == sorted({35, 40} | {min(scored)[1]})


def test_memory_estimate_is_close_to_actual(whole: Path) -> None:
    """A laptop of 1 GB told that 0.2 GB will do: the process counts, not the model alone."""
    said = (whole.parent / "said").read_text(encoding="utf-8")
    announced, peak = (
        float(re.search(rf"{words} (\d+\.\d+) GB", said)[1])
        for words in ("about", "of the process")
    )
    assert peak / 1.5 < announced < 1.5 * peak, (announced, peak)
    assert "held out" not in said


@pytest.mark.slow
def test_training_without_validation_gives_a_notice(
    root: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Hours of training in which somebody waits for the first validation loss."""
    done = train(
        root,
        tmp_path / "run",
        shards(tmp_path / "shards", tokenizer, train=20, validation=0),
        "--max_steps",
        "1",
    )
    assert done.returncode == 0, done.stderr
    before, _, _ = done.stdout.partition("step 1/1")
    assert "nothing of it is held out: there will be no validation loss" in before
