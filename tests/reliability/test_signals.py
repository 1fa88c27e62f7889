"""Ctrl-C and SIGTERM: training saves the last finished step and prints how to resume.

A second signal exits at once.
"""

import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.run_layout import list_steps
from model.llama import Llama
from tests.fault_injection.child import running_child
from tests.fault_injection.kill import Scenario
from tests.reliability.conftest import check_resumed_run
from train.metrics_log import MetricsLog
from train.pretrain_eval import TextEvaluator
from train.stop_signals import DUPLICATE_SIGNAL_SECONDS


@dataclass
class Endless:
    """The fault: the evaluation, or the write of the second checkpoint, never ends.

    The file `sign` tells that it has begun.
    """

    what: str
    sign: Path

    def __call__(self) -> None:
        import train.training_state

        if self.what == "evaluation":
            fault = self
            TextEvaluator.evaluate = lambda *arguments: fault._evaluate(*arguments)  # type: ignore[method-assign]
        else:
            self._save, self._count = train.training_state.save_file, 0
            train.training_state.save_file = self._write  # type: ignore[assignment]

    def _evaluate(self, evaluator: TextEvaluator, model: Llama, step: int, log: MetricsLog) -> None:
        log.write("validation", step, loss=0.0)
        self._wait()

    def _write(self, tensors: Any, path: Path) -> None:
        self._count += 1
        if self._count == 2:
            path.write_bytes(b"half")
            self._wait()
        self._save(tensors, path)

    def _wait(self) -> None:
        self.sign.touch()
        while True:
            time.sleep(0.01)


@dataclass
class Long:
    """The fault: the first micro-batch of a step waits for a file `go`; later ones never end."""

    step: int
    folder: Path

    def __call__(self) -> None:
        import train.trainer

        self._check, self._count = train.trainer._check_token_ids, 0
        train.trainer._check_token_ids = self._wait  # type: ignore[assignment]

    def _wait(self, *arguments: Any) -> None:
        self._check(*arguments)
        self._count += 1
        if self._count > 2 * self.step - 2:  # two a step
            (self.folder / "begun").touch()
            while self._count > 2 * self.step - 1 or not (self.folder / "go").exists():
                time.sleep(0.01)


def faulty(scenario: Scenario, run: Path, fault: Callable[[], None]) -> Any:
    return running_child(
        scenario.module, [*scenario.arguments, "--run", str(run)], run.with_suffix(".log"), fault
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "steps", "when"),
    [(8, [6, 7], r"within about 0:\d\d"), (1, [0], "as soon as the current rows are done")],
)
def test_signal_during_long_step_saves_immediately(
    step: int, steps: list[int], when: str, pretrain: Scenario, uninterrupted: Path, tmp_path: Path
) -> None:
    """Prevents a stop that seems to hang, a partial step that is saved or logged, and early exits.

    A signal that arrives twice at once, as from systemd through torchrun, counts as one.
    """
    run = tmp_path / "run"
    with faulty(pretrain, run, Long(step, tmp_path)) as child:
        child.wait_until((tmp_path / "begun").exists)
        child.send_signal(signal.SIGTERM)
        child.wait_until(lambda: "SIGTERM" in child.output)
        child.send_signal(signal.SIGTERM)
        assert re.search(
            rf"\nSIGTERM: saving the last finished step and stopping, {when}; once more to leave",
            child.output,
        )
        time.sleep(0.1)
        (tmp_path / "go").touch()
        assert child.wait() == 0, child.output
    assert f"saved after step {step - 1} of 40; the same command resumes from there" in child.output
    assert child.output.count("SIGTERM") == 1 and list_steps(run) == steps
    check_resumed_run(pretrain, run, uninterrupted)


@pytest.mark.slow
def test_signal_interrupts_evaluation(
    pretrain: Scenario, uninterrupted: Path, tmp_path: Path
) -> None:
    """Prevents a Ctrl-C that waits for the evaluation, and half an evaluation in the metrics."""
    run = tmp_path / "run"
    with faulty(pretrain, run, Endless("evaluation", run.with_suffix(".sign"))) as child:
        child.wait_until(run.with_suffix(".sign").exists)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0, child.output
        assert "SIGTERM: leaving this evaluation" in child.output
        assert "saved after step 6 of 40; the same command resumes from there" in child.output
    assert list_steps(run) == [4, 6]
    check_resumed_run(pretrain, run, uninterrupted)


@pytest.mark.slow
def test_second_ctrl_c_exits_immediately_without_damage(
    pretrain: Scenario, uninterrupted: Path, tmp_path: Path
) -> None:
    """Half a checkpoint left by impatience, or a second Ctrl-C that has to wait as well."""
    run = tmp_path / "run"
    with faulty(pretrain, run, Endless("checkpoint", run.with_suffix(".sign"))) as child:
        child.wait_until(run.with_suffix(".sign").exists)
        child.send_signal(signal.SIGINT)
        child.wait_until(lambda: "once more to leave at once" in child.output)
        time.sleep(DUPLICATE_SIGNAL_SECONDS)
        child.send_signal(signal.SIGINT)
        assert child.wait() == 130, child.output
    assert list_steps(run) == [4] and "Traceback" not in child.output
    assert not [path for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"]
    check_resumed_run(pretrain, run, uninterrupted)
