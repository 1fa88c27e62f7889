"""Ctrl-C and SIGTERM to torchrun: one line, one checkpoint, no process left, and a resume."""

import contextlib
import json
import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from common.errors import run_main
from common.metrics_file import read_metrics
from model.checkpoint.locate import find_newest_step
from tests.fault_injection.child import create_process, set_up_command_process
from tests.fault_injection.kill import Scenario
from tests.helpers.training import to_arguments

NEVER = 1_000_000
# A run that no checkpoint and no evaluation interrupts, until it is stopped.
ENDLESS = {
    "max_steps": NEVER,
    "checkpoint.every": NEVER,
    "evaluation.every": NEVER,
    "log_every": 1,
}


def torchrun(jobs_file: Path, log: Path) -> None:
    """Become torchrun with two processes, in a session of its own."""
    from tests.helpers.parallel_jobs import launch_torchrun

    os.setsid()
    set_up_command_process(["torchrun"], log, log)
    run_main(lambda: launch_torchrun("2", str(jobs_file)))


def run_and_stop(scenario: Scenario, run: Path, number: signal.Signals, target: str) -> str:
    """Start torchrun with two processes and send a signal after some steps; return the output.

    `target` is "group" (as from a terminal) or "all" (as from systemd and Slurm). In both cases
    torchrun forwards the signal to its processes once more.
    """
    num_records = len(read_metrics(run))
    arguments = [*scenario.arguments, *to_arguments({**ENDLESS, "run": run})]
    jobs_file, log = run.with_suffix(".json"), run.with_suffix(f".{target}")
    jobs_file.write_text(json.dumps([["train", "pretrain", *arguments]]))
    process = create_process(torchrun, jobs_file, log)
    process.start()
    parent = psutil.Process(process.pid)
    ranks: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 120
        while (
            process.is_alive()
            and len(read_metrics(run)) <= num_records + 5
            and time.monotonic() < deadline
        ):
            time.sleep(0.02)
        ranks = parent.children(recursive=True)
        if target == "group":
            os.killpg(parent.pid, number)
        else:
            for each in (parent, *ranks):
                each.send_signal(number)
        process.join(60)
    finally:
        remaining = [each for each in (parent, *ranks) if is_running(each)]
        for each in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
    text = log.read_text(encoding="utf-8")
    assert len(ranks) >= 2 and remaining == [], text
    return text


def is_running(process: psutil.Process) -> bool:
    """Return whether a process has not ended; one that nobody waits for has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.slow
def test_signal_to_torchrun_saves_once_and_ends_all_ranks(
    pretrain: Scenario, tmp_path: Path
) -> None:
    """Catch a line per process, a checkpoint lost to a doubled signal, and ranks that live on."""
    run = tmp_path / "run"
    step_before = 0
    for number, target in ((signal.SIGINT, "group"), (signal.SIGTERM, "all")):
        output = run_and_stop(pretrain, run, number, target)
        announced = rf"^{number.name}: saving the last finished step"
        assert len(re.findall(announced, output, re.MULTILINE)) == 1, output
        saved = rf"^saved after step (\d+) of {NEVER}; the same command resumes from there$"
        [step] = re.findall(saved, output, re.MULTILINE)
        assert find_newest_step(run) == int(step) >= step_before + 5
        assert (f"continues after step {step_before})" in output) == (step_before > 0)
        assert not re.search("^error:|^interrupted", output, re.MULTILINE), output
        step_before = int(step)
