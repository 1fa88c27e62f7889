"""Ctrl-C and SIGTERM to torchrun: one line, one checkpoint, no processes left, and a resume."""

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

# Train until a signal arrives, without periodic checkpoints and evaluations.
ENDLESS = [
    "--max_steps",
    "1000000",
    "--checkpoint.every",
    "1000000",
    "--evaluation.every",
    "1000000",
    "--log_every",
    "1",
]


def stop_torchrun(
    root: Path, scenario: Scenario, run: Path, number: signal.Signals, to: str
) -> str:
    """Run torchrun with two processes, send a signal after some steps, and return the output.

    `to` is "torchrun" for the launcher alone, "group" for its process group, as from a terminal, or
    "all" for all processes, as from systemd and Slurm.
    """
    before = len(read_metrics(run))
    command = [scenario.module, *scenario.arguments, *ENDLESS, "--run", str(run)]
    with run.with_suffix(f".{to}").open("w+") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc-per-node",
                "2",
                "-m",
                "--",
                *command,
            ],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while (
                time.monotonic() < deadline
                and process.poll() is None
                and len(read_metrics(run)) <= before + 5
            ):
                time.sleep(0.05)
            for pid in started_with(run) if to == "all" else [process.pid]:
                (os.killpg if to == "group" else os.kill)(pid, number)
            process.wait(60)
        finally:
            left = started_with(run)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        output.seek(0)
        text = output.read()
    assert left == [], text
    return text


def started_with(run: Path) -> list[int]:
    """Return the processes that have a run in their command line."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(run) in read_command_line(path)
    ]


def read_command_line(cmdline: Path) -> str:
    """Return the command line of a process, or an empty string if it has ended."""
    try:
        return cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_signal_to_torchrun_saves_once_and_ends_all_ranks(
    root: Path, pretrain: Scenario, tmp_path: Path
) -> None:
    """Prevents repeated lines and errors, a lost checkpoint, and ranks that keep the run locked."""
    run, before = tmp_path / "run", 0
    for number, to in (
        (signal.SIGINT, "group"),
        (signal.SIGTERM, "torchrun"),
        (signal.SIGTERM, "all"),
    ):
        output = stop_torchrun(root, pretrain, run, number, to)
        assert (
            len(re.findall(rf"^{number.name}: saving the last finished step", output, re.MULTILINE))
            == 1
        ), output
        [step] = re.findall(
            r"^saved after step (\d+) of 1000000; the same command resumes from there$",
            output,
            re.MULTILINE,
        )
        assert find_newest_step(run) == int(step) >= before + 5
        assert (f"continues after step {before})" in output) == (before > 0)
        assert not re.search("^error:|^interrupted", output, re.MULTILINE), output
        before = int(step)
