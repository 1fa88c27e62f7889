"""Ctrl-C and SIGTERM to torchrun: one line, one checkpoint, no process left, and a resume."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.metrics_file import read_metrics
from model.checkpoint.locate import find_newest_step
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
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]


def run_and_stop(
    root: Path, scenario: Scenario, run: Path, number: signal.Signals, target: str
) -> str:
    """Start torchrun with two processes and send a signal after some steps; return the output.

    `target` is "group" (as from a terminal, and as systemd and Slurm do), and torchrun forwards the
    signal to its processes once more; or it is "ranks", without torchrun.
    """
    num_records = len(read_metrics(run))
    command = [scenario.module, *scenario.arguments, *to_arguments({**ENDLESS, "run": run})]
    with run.with_suffix(f".{target}").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *TORCHRUN, *command],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and len(read_metrics(run)) <= num_records + 5:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            if target == "group":
                os.killpg(process.pid, number)
            else:
                for pid in find_processes(run):
                    if pid != process.pid:
                        os.kill(pid, number)
            process.wait(60)
        finally:
            remaining = find_processes(run)
            for pid in remaining:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        output.seek(0)
        text = output.read()
    assert remaining == [] and process.returncode, text
    return text


def find_processes(run: Path) -> list[int]:
    """Return the processes with the run in their command line."""
    files = Path("/proc").glob("[0-9]*/cmdline")
    return [int(file.parent.name) for file in files if str(run) in read_command_line(file)]


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
    """Catch a line per process, a checkpoint lost to a doubled signal, and ranks that live on.

    A script must not go on either: torchrun never exits with 0.
    """
    run = tmp_path / "run"
    step_before = 0
    stops = ((signal.SIGINT, "group"), (signal.SIGTERM, "ranks"))
    for number, target in stops:
        output = run_and_stop(root, pretrain, run, number, target)
        announced = rf"^{number.name}: saving the last finished step"
        assert len(re.findall(announced, output, re.MULTILINE)) == 1, output
        saved = rf"^saved after step (\d+) of {NEVER}; the same command resumes from there$"
        steps = re.findall(saved, output, re.MULTILINE)
        assert len(steps) == 1, output
        [step] = steps
        assert find_newest_step(run) == int(step) >= step_before + 5
        assert (f"continues after step {step_before})" in output) == (step_before > 0)
        assert not re.search("^error:|^interrupted", output, re.MULTILINE), output
        step_before = int(step)
