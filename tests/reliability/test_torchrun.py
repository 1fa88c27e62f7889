"""Ctrl-C and SIGTERM to torchrun itself: one line, a checkpoint, nobody left behind, and the next start goes on."""

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

# As long as nobody stops it: no checkpoint and no evaluation comes by itself.
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


def stopped(root: Path, scenario: Scenario, run: Path, number: signal.Signals, to: str) -> str:
    """What torchrun with two processes says if a signal comes some steps after it began: `to` it alone, to its group, as from
    a terminal, or to all processes, as from systemd and Slurm."""
    before = len(read_metrics(run))
    command = [scenario.module, *scenario.arguments, *ENDLESS, "--run", str(run)]
    with run.with_suffix(f".{to}").open("w+") as said:
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
            stdout=said,
            stderr=said,
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
        said.seek(0)
        text = said.read()
    assert left == [], text
    return text


def started_with(run: Path) -> list[int]:
    """The processes that have a run in their command line."""
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if str(run) in words_of(path)
    ]


def words_of(cmdline: Path) -> str:
    """How a process was started; nothing if it is no more."""
    try:
        return cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


@pytest.mark.slow
def test_signal_to_torchrun_saves_once_and_ends_all_ranks(
    root: Path, pretrain: Scenario, tmp_path: Path
) -> None:
    """A line for each process, or an error; a checkpoint lost to a signal that comes directly and once more through
    torchrun; processes that train on for nobody, and hold the run."""
    run, before = tmp_path / "run", 0
    for number, to in (
        (signal.SIGINT, "group"),
        (signal.SIGTERM, "torchrun"),
        (signal.SIGTERM, "all"),
    ):
        said = stopped(root, pretrain, run, number, to)
        assert (
            len(re.findall(rf"^{number.name}: saving the last finished step", said, re.MULTILINE))
            == 1
        ), said
        [step] = re.findall(
            r"^saved after step (\d+) of 1000000; the same command resumes from there$",
            said,
            re.MULTILINE,
        )
        assert find_newest_step(run) == int(step) >= before + 5
        assert (f"continues after step {before})" in said) == (before > 0)
        assert not re.search("^error:|^interrupted", said, re.MULTILINE), said
        before = int(step)
