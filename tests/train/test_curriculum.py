"""Pretraining with a curriculum: its summary, its resume, and what a resumed run refuses."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from common import run_layout
from common.errors import UserError
from model.tokenizer.base import Tokenizer
from tests.helpers.training import (
    TINY_SHAPE,
    checkpoint_bytes,
    comparable_records,
    to_arguments,
    truncate_tokenizer,
    write_text_set,
)
from train import pretrain

# 20 steps of 8 rows; the rate falls from step 10 on: 8 * 10 * 0.5 / 2 = 20 rows of tasks.
OPTIONS = {
    "model": TINY_SHAPE,
    "sequence_length": 32,
    "batch_tokens": 256,
    "micro_batch": 4,
    "max_steps": 20,
    "schedule.decay": 0.5,
    "checkpoint.every": 7,
    "checkpoint.keep": "all",
    "evaluation.every": 10,
    "evaluation.sample_tokens": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> tuple[Path, Path]:
    """A set of text, and one of tasks, which are text, too."""
    folder = tmp_path_factory.mktemp("sets")
    small = truncate_tokenizer(tokenizer)
    text = write_text_set(folder / "text", small, train=60, validation=6)
    return text, write_text_set(folder / "tasks", small, train=5, validation=2)


def train(run: Path, data: object, tasks: Path | None, **options: Any) -> None:
    """Run `python -m train.pretrain` in this process."""
    curriculum = {"curriculum.data": tasks} if tasks else {}
    arguments = to_arguments({"run": run, "data": data, **OPTIONS, **curriculum, **options})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pretrain", *arguments])
        pretrain.main()


@pytest.fixture(scope="module")
def whole(sets: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
        train(run, sets[0], sets[1])
    return run


@pytest.mark.slow
def test_summary_says_how_much_of_the_tasks_there_is(
    sets: tuple[Path, Path], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a run that trains on something else than it says."""
    train(whole, sets[0], sets[1])
    expected = (
        rf"of these 640 of {re.escape(str(sets[1]))} \([\d.]+ epochs\): from step 11 on, from 0% "
        "to 50% at the end"
    )
    assert re.search(expected, capsys.readouterr().out)


@pytest.mark.slow
def test_resume_within_the_curriculum_is_bit_identical(
    sets: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    """Prevents a resumed run that begins the tasks again, or leaves them out."""
    run = tmp_path / "run"
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run_layout.step_folder(run, 20))
    shutil.rmtree(run / run_layout.PLAN_DIR)
    train(run, sets[0], sets[1])
    assert checkpoint_bytes(run, 20) == checkpoint_bytes(whole, 20)
    assert comparable_records(run) == comparable_records(whole)


@pytest.mark.slow
def test_another_curriculum_on_resume_is_refused(
    sets: tuple[Path, Path], whole: Path, tmp_path: Path
) -> None:
    """Prevents a run whose second half follows another plan than its first."""
    text, tasks = sets
    with pytest.raises(UserError, match=r"curriculum to 0\.5.*curriculum to 0\.25"):
        train(whole, text, tasks, **{"curriculum.share": 0.25})
    with pytest.raises(UserError, match=r"curriculum to 0\.5"):
        train(whole, text, None, **{"curriculum.data": "null"})
    # The same sets, all of them in --data.
    mixed = tmp_path / "mixed"
    train(mixed, f"{text}+{tasks}", None, max_steps=2)
    with pytest.raises(UserError, match=r"curriculum to 0\.5"):
        train(mixed, text, tasks, max_steps=2)
