"""The duplicates of a stop signal, which systemd, Slurm and torchrun send; exit codes."""

import importlib
import signal
import sys
import time
from pathlib import Path

import pytest

from train import distributed
from train.stop_signals import (
    DUPLICATE_SIGNAL_SECONDS,
    TORCHRUN_DUPLICATE_SIGNAL_SECONDS,
    StopRequest,
)


@pytest.fixture
def stop_request(default_signal_handlers: None) -> StopRequest:
    """Return a request without a signal."""
    return StopRequest(lambda: None)


def test_duplicate_after_training_is_ignored(stop_request: StopRequest) -> None:
    """Prevents a process that torchrun signals late from ending before it reports its save."""
    with stop_request:
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert stop_request


def test_handlers_are_restored_without_a_signal(stop_request: StopRequest) -> None:
    """Prevents a complete run from ignoring the Ctrl-C that comes after it."""
    with stop_request:
        pass
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("num_processes", [1, 2])
def test_later_signal_ends_the_process(
    stop_request: StopRequest, num_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a second Ctrl-C that does nothing, and duplicates by torchrun that end a save."""
    monkeypatch.setattr(distributed, "world_size", lambda: num_processes)
    seconds = (DUPLICATE_SIGNAL_SECONDS, TORCHRUN_DUPLICATE_SIGNAL_SECONDS)[num_processes - 1]
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with stop_request:
        signal.raise_signal(signal.SIGINT)
        now = seconds - 0.1
        signal.raise_signal(signal.SIGTERM)
        now = seconds + 0.1
        for number in (signal.SIGINT, signal.SIGTERM):
            with pytest.raises(KeyboardInterrupt) as ended:
                signal.raise_signal(number)
            # The exit code is that of the signal.
            assert ended.value.args == (number,)


@pytest.mark.parametrize(
    ("command", "function"),
    [("pretrain", "pretrain"), ("sft", "fine_tune"), ("dpo", "learn_preferences")],
)
def test_command_ends_with_the_code_of_its_run(
    command: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a script from going on after one of the commands was stopped."""
    stopped = 128 + signal.SIGTERM
    monkeypatch.setattr(f"train.{command}_run.{function}", lambda _options: stopped)
    arguments = [command, "--data", "redgpt", "--run", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", arguments)
    assert importlib.import_module(f"train.{command}").main() == stopped
