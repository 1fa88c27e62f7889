"""Ctrl-C and SIGTERM to torchrun: one line, one checkpoint, no process left, and a resume."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from common.metrics_file import read_metrics
from model.checkpoint.locate import find_newest_step
from tests.fault_injection.kill import Scenario
from tests.helpers.processes import CommandProcess
from tests.helpers.training import to_arguments

NEVER = 1_000_000
# A run that no checkpoint and no evaluation interrupts, until it is stopped.
ENDLESS = {
    "max_steps": NEVER,
    "checkpoint.every": NEVER,
    "evaluation.every": NEVER,
    "log_every": 1,
}
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]


def stop_torchrun(root: Path, scenario: Scenario, run: Path) -> str:
    """Send SIGINT to the process group of torchrun, as a terminal does; return the output."""
    with run.with_suffix(".output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *TORCHRUN, scenario.module, *arguments(scenario, run)],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for_steps(run, process.poll)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)
        finally:
            remaining = find_processes(run, process.pid)
            kill_all(remaining)
        output.seek(0)
        text = output.read()
    assert remaining == [], text
    return text


def stop_forks(scenario: Scenario, run: Path) -> str:
    """Send SIGTERM to torchrun and its processes, as systemd and Slurm do; return the output.

    They are forks: what starts torchrun and its processes is tested by the other signal.
    """
    jobs = run.with_suffix(".jobs")
    jobs.write_text(json.dumps([["command", scenario.module, *arguments(scenario, run)]]))
    process = CommandProcess("tests.helpers.parallel_jobs", "2", str(jobs), fault=start_session)
    try:
        wait_for_steps(run, lambda: None if process.is_alive else 0)
        for pid in find_processes(run, process.pid):
            os.kill(pid, signal.SIGTERM)
        done = process.wait(60)
    finally:
        remaining = find_processes(run, process.pid)
        kill_all(remaining)
    text = done.stdout + done.stderr
    assert remaining == [], text
    return text


def start_session() -> None:
    """Let the forks of torchrun be known by their session."""
    os.setsid()


def arguments(scenario: Scenario, run: Path) -> list[str]:
    """Return the command line of a run that only a signal ends."""
    return [*scenario.arguments, *to_arguments({**ENDLESS, "run": run})]


def wait_for_steps(run: Path, poll: Callable[[], int | None]) -> None:
    """Wait until a run has logged six more steps, has ended (`poll`) or is late."""
    num_records = len(read_metrics(run))
    deadline = time.monotonic() + 120
    while poll() is None and len(read_metrics(run)) <= num_records + 5:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)


def kill_all(pids: list[int]) -> None:
    """Kill the processes that a failed test would leave."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def find_processes(run: Path, session: int) -> list[int]:
    """Return the processes with the run in their command line, and those of a session."""
    pids = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        pid = int(file.parent.name)
        with contextlib.suppress(ProcessLookupError):
            if str(run) in read_command_line(file) or os.getsid(pid) == session:
                pids.append(pid)
    return pids


def read_command_line(file: Path) -> str:
    """Return the command line of a process, empty if the process has ended."""
    try:
        return file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_signal_to_torchrun_saves_once_and_ends_all_ranks(
    root: Path, pretrain: Scenario, tmp_path: Path
) -> None:
    """Catch a line per process, a checkpoint lost to a doubled signal, and ranks that live on."""
    run = tmp_path / "run"
    step_before = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        if number == signal.SIGINT:
            output = stop_torchrun(root, pretrain, run)
        else:
            output = stop_forks(pretrain, run)
        announced = rf"^{number.name}: saving the last finished step"
        assert len(re.findall(announced, output, re.MULTILINE)) == 1, output
        saved = rf"^saved after step (\d+) of {NEVER}; the same command resumes from there$"
        [step] = re.findall(saved, output, re.MULTILINE)
        assert find_newest_step(run) == int(step) >= step_before + 5
        assert (f"continues after step {step_before})" in output) == (step_before > 0)
        assert not re.search("^error:|^interrupted", output, re.MULTILINE), output
        step_before = int(step)
