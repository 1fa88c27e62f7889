"""Ctrl-C and SIGTERM: the step ends, a checkpoint is written, a line says how to go on; the second leaves at once."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench.child import started
from bench.kill import Scenario, differences
from model.checkpoints import steps


@dataclass
class Endless:
    """The fault: the evaluation, or the writing of the second checkpoint, does not end; a file says that it began."""

    what: str
    sign: Path

    def __call__(self) -> None:
        import train.checkpoint
        import train.pretrain

        if self.what == "evaluation":
            train.pretrain.evaluate = self._evaluate  # type: ignore[assignment]
        else:
            self._save, self._count = train.checkpoint.save_file, 0
            train.checkpoint.save_file = self._write  # type: ignore[assignment]

    def _evaluate(self, options: Any, model: Any, tokenizer: Any, validation: Any, step: int, log: Any, final: bool) -> None:
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


def faulty(scenario: Scenario, run: Path, what: str) -> Any:
    arguments = [*scenario.arguments, "--run", str(run)]
    return started(scenario.module, arguments, run.with_suffix(".log"), Endless(what, run.with_suffix(".sign")))


def goes_on(scenario: Scenario, run: Path, whole: Path) -> None:
    child = scenario.start(run)
    assert child.wait() == 0, child.said
    assert differences(run, whole) == []


@pytest.mark.slow
def test_a_signal_ends_an_evaluation_at_once(pretrain: Scenario, whole: Path, tmp_path: Path) -> None:
    """Ctrl-C that waits for minutes of scoring and answering; half an evaluation that stays in the record."""
    run = tmp_path / "run"
    with faulty(pretrain, run, "evaluation") as child:
        child.until(run.with_suffix(".sign").exists)
        child.send(signal.SIGTERM)
        assert child.wait() == 0, child.said
        assert "SIGTERM: leaving this evaluation" in child.said
        assert "saved after step 6 of 40; the same command goes on from there" in child.said
    assert steps(run) == [4, 6]
    goes_on(pretrain, run, whole)


@pytest.mark.slow
def test_a_second_ctrl_c_leaves_at_once_and_whole(pretrain: Scenario, whole: Path, tmp_path: Path) -> None:
    """Half a checkpoint left by impatience, or a second Ctrl-C that has to wait as well."""
    run = tmp_path / "run"
    with faulty(pretrain, run, "checkpoint") as child:
        child.until(run.with_suffix(".sign").exists)
        child.send(signal.SIGINT)
        child.until(lambda: "once more to leave at once" in child.said)
        child.send(signal.SIGINT)
        assert child.wait() == 130, child.said
    assert steps(run) == [4] and "Traceback" not in child.said
    assert not [path for path in (run / "checkpoints").iterdir() if path.suffix == ".tmp"]
    goes_on(pretrain, run, whole)
