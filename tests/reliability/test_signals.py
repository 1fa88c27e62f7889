"""Ctrl-C and SIGTERM: the last finished step is saved; a second signal ends the process at once."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.run_layout import list_steps
from model.llama import Llama
from tests.fault_injection.child import ChildProcess, running_child
from tests.fault_injection.kill import Scenario
from tests.reliability.conftest import assert_resumes_like
from train.monitoring.metrics_log import MetricsLog
from train.pretrain_eval import TextEvaluator
from train.stop_signals import DUPLICATE_SIGNAL_SECONDS

MICRO_BATCHES_PER_STEP = 2


@dataclass
class EndlessEvaluation:
    """The fault: an evaluation logs a score and does not end; a file marks its start."""

    started: Path

    def __call__(self) -> None:
        """Inject the fault into this process."""
        started = self.started

        def evaluate(evaluator: TextEvaluator, model: Llama, step: int, log: MetricsLog) -> None:
            log.write("validation", step, loss=0.0)
            wait_forever(started)

        TextEvaluator.evaluate = evaluate  # type: ignore[method-assign]


@dataclass
class EndlessSave:
    """The fault: the second checkpoint is half written and does not end; a file marks its start."""

    started: Path

    def __call__(self) -> None:
        """Inject the fault into this process."""
        import train.checkpoint

        save_file = train.checkpoint.save_file
        calls: list[Path] = []

        def save(tensors: Any, path: Path) -> None:
            calls.append(path)
            if len(calls) == 2:
                path.write_bytes(b"half")
                wait_forever(self.started)
            save_file(tensors, path)

        train.checkpoint.save_file = save  # type: ignore[assignment]


def wait_forever(started: Path) -> None:
    """Create the file and wait for a signal."""
    started.touch()
    while True:
        time.sleep(0.01)


@dataclass
class LongStep:
    """The fault: the first micro-batch of a step waits for the file `go`, the second forever."""

    step: int  # from 1
    folder: Path

    def __call__(self) -> None:
        """Inject the fault into this process."""
        import train.trainer

        check_token_ids = train.trainer._check_token_ids
        num_before = MICRO_BATCHES_PER_STEP * (self.step - 1)
        calls: list[None] = []

        def check(*arguments: Any) -> None:
            check_token_ids(*arguments)
            calls.append(None)
            if len(calls) > num_before:
                (self.folder / "started").touch()
                while len(calls) > num_before + 1 or not (self.folder / "go").exists():
                    time.sleep(0.01)

        train.trainer._check_token_ids = check


@dataclass
class LongStepWithoutReader(LongStep):
    """The fault: as `LongStep`, and the reader of the output has ended when it begins."""

    def __call__(self) -> None:
        """Inject the fault into this process."""
        super().__call__()
        import train.trainer

        check_token_ids = train.trainer._check_token_ids

        def check(*arguments: Any) -> None:
            reader, writer = os.pipe()
            os.close(reader)
            os.dup2(writer, 1)
            check_token_ids(*arguments)

        train.trainer._check_token_ids = check


def start(
    scenario: Scenario, run: Path, fault: Callable[[], None]
) -> AbstractContextManager[ChildProcess]:
    """Start a run with a fault."""
    arguments = [*scenario.arguments, "--run", str(run)]
    return running_child(scenario.module, arguments, run.with_suffix(".log"), fault)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "saved_steps", "estimate"),
    [(8, [6, 7], r"within about 0:\d\d"), (1, [0], "as soon as the current rows are done")],
)
def test_signal_during_long_step_saves_immediately(
    step: int,
    saved_steps: list[int],
    estimate: str,
    pretrain: Scenario,
    whole: Path,
    tmp_path: Path,
) -> None:
    """Catch minutes without an answer, half a step that is saved or logged, and a doubled signal.

    systemd signals every process, and torchrun forwards its own signal: two within a moment are
    one request, and must not end the process before its checkpoint.
    """
    run = tmp_path / "run"
    with start(pretrain, run, LongStep(step, tmp_path)) as child:
        child.wait_until((tmp_path / "started").exists)
        child.send_signal(signal.SIGTERM)
        child.wait_until(lambda: "SIGTERM" in child.output)
        child.send_signal(signal.SIGTERM)
        message = rf"\nSIGTERM: saving the last finished step and stopping, {estimate}; once more"
        assert re.search(message, child.output)
        time.sleep(0.1)
        (tmp_path / "go").touch()
        assert child.wait() == 128 + signal.SIGTERM, child.output
    assert f"saved after step {step - 1} of 20; the same command resumes" in child.output
    assert child.output.count("SIGTERM") == 1
    assert list_steps(run) == saved_steps
    assert_resumes_like(pretrain, run, whole)


@pytest.mark.slow
def test_signal_interrupts_evaluation(pretrain: Scenario, whole: Path, tmp_path: Path) -> None:
    """Catch Ctrl-C that waits for minutes of evaluation, and half an evaluation in the log."""
    run, started = tmp_path / "run", tmp_path / "started"
    with start(pretrain, run, EndlessEvaluation(started)) as child:
        child.wait_until(started.exists)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 128 + signal.SIGTERM, child.output
    assert "SIGTERM: leaving this evaluation" in child.output
    assert "saved after step 6 of 20; the same command resumes from there" in child.output
    assert list_steps(run) == [4, 6]
    assert_resumes_like(pretrain, run, whole)


@pytest.mark.slow
def test_ctrl_c_saves_although_the_reader_of_the_output_has_ended(
    pretrain: Scenario, tmp_path: Path
) -> None:
    """Catch `make pretrain | tee log`: Ctrl-C ends tee first, and then the run without saving."""
    run = tmp_path / "run"
    with start(pretrain, run, LongStepWithoutReader(1, tmp_path)) as child:
        child.wait_until((tmp_path / "started").exists)
        child.send_signal(signal.SIGINT)
        time.sleep(0.1)
        (tmp_path / "go").touch()
        assert child.wait() == 128 + signal.SIGPIPE, child.output
    assert list_steps(run) == [0] and "Traceback" not in child.output


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_script_does_not_go_on_after_an_interrupted_make(root: Path, tmp_path: Path) -> None:
    """Catch `make pretrain && make sft` that fine-tunes an unfinished model."""
    shutil.copy(root / "Makefile", tmp_path)
    # Ends as a run that SIGTERM stops does.
    python = tmp_path / "venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\nexit 143\n")
    python.chmod(0o755)
    for name in ("requirements.txt", "venv/.installed"):
        (tmp_path / name).touch()
    command = "make pretrain VENV=venv && touch went-on"
    process = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode and "Error 143" in process.stderr
    assert not (tmp_path / "went-on").exists()


@pytest.mark.slow
def test_second_ctrl_c_exits_immediately_without_damage(
    pretrain: Scenario, whole: Path, tmp_path: Path
) -> None:
    """Catch half a checkpoint that stays, and a second Ctrl-C that has to wait too."""
    run, started = tmp_path / "run", tmp_path / "started"
    with start(pretrain, run, EndlessSave(started)) as child:
        child.wait_until(started.exists)
        child.send_signal(signal.SIGINT)
        child.wait_until(lambda: "once more to leave at once" in child.output)
        time.sleep(DUPLICATE_SIGNAL_SECONDS)
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130, child.output
    assert list_steps(run) == [4] and "Traceback" not in child.output
    assert not list((run / "checkpoints").glob("*.tmp"))
    assert_resumes_like(pretrain, run, whole)
