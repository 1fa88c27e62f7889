"""Ctrl-C and SIGTERM: the last finished step is saved, a line says how to go on; the second leaves at once."""

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
from tests.reliability.conftest import goes_on
from train.metrics_log import MetricsLog
from train.pretrain_eval import TextEvaluator
from train.stop_signals import DUPLICATE_SIGNAL_SECONDS


@dataclass
class Endless:
    """The fault: the evaluation, or the writing of the second checkpoint, does not end; a file says that it began."""

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
    """The fault: the first micro-batch of a step, counted from one, lasts until there is a file `go`; no later one ends."""

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
    ("step", "kept", "when"),
    [(8, [6, 7], r"within about 0:\d\d"), (1, [0], "as soon as the current rows are done")],
)
def test_signal_during_long_step_saves_immediately(
    step: int, kept: list[int], when: str, pretrain: Scenario, whole: Path, tmp_path: Path
) -> None:
    """Minutes in which it looks hung, until somebody kills it; half a step that is saved, or logged; the same signal twice
    in a moment, as systemd through torchrun sends it, taken for impatience that must not wait for the checkpoint."""
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
    assert child.output.count("SIGTERM") == 1 and list_steps(run) == kept
    goes_on(pretrain, run, whole)


@pytest.mark.slow
def test_signal_interrupts_evaluation(pretrain: Scenario, whole: Path, tmp_path: Path) -> None:
    """Ctrl-C that waits for minutes of scoring and answering; half an evaluation that stays in the record."""
    run = tmp_path / "run"
    with faulty(pretrain, run, Endless("evaluation", run.with_suffix(".sign"))) as child:
        child.wait_until(run.with_suffix(".sign").exists)
        child.send_signal(signal.SIGTERM)
        assert child.wait() == 0, child.output
        assert "SIGTERM: leaving this evaluation" in child.output
        assert "saved after step 6 of 40; the same command resumes from there" in child.output
    assert list_steps(run) == [4, 6]
    goes_on(pretrain, run, whole)


@pytest.mark.slow
def test_second_ctrl_c_exits_immediately_without_damage(
    pretrain: Scenario, whole: Path, tmp_path: Path
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
    goes_on(pretrain, run, whole)
