"""Decoding beside other work: threads without a processor of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.decode import free_processors
from model.decode.free_processors import FreeProcessors

# Prints the threads on entry, after a while of single-threaded work, within another loop that ends
# later, and after both.
SCRIPT = """
import sys, time, torch
from model.decode.free_processors import FreeProcessors, keep_all_threads

if "training" in sys.argv:
    keep_all_threads()

torch.set_num_threads(2)
with FreeProcessors() as processors:
    threads = [torch.get_num_threads()]
    stop = time.monotonic() + 1.5
    while time.monotonic() < stop:
        processors.adapt()
        sum(range(1000))
    threads.append(torch.get_num_threads())
    other = FreeProcessors().__enter__()
threads.append(torch.get_num_threads())
other.__exit__(None, None, None)
print(*threads, torch.get_num_threads())
"""
BUSY = "while True: pass"


def count_threads(root: Path, *arguments: str, **settings: str) -> list[int]:
    """Return what the script prints in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=root,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the load of the machine is unknown")
def test_threads_leave_busy_processors(root: Path) -> None:
    """Prevents threads that wait for a processor, and a change that outlives decoding."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
    try:
        assert count_threads(root) == [2, 1, 1, 2]
        assert count_threads(root, "training") == [2, 2, 2, 2]
        assert count_threads(root, OMP_NUM_THREADS="2") == [2, 2, 2, 2]
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_slow_steps_do_not_bring_threads_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents steps that take seconds, because threads wait, from being decoded by all threads."""
    num_processors = os.cpu_count() or 1
    clock = iter(range(0, 1000, 5))

    def read_times() -> free_processors._Times:
        now = float(next(clock))
        return free_processors._Times(now, all_busy=now * num_processors, own_busy=0.1 * now)

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(free_processors, "_is_switched_off", False)
    monkeypatch.setattr(free_processors, "_read_times", read_times)
    monkeypatch.setattr(free_processors.time, "monotonic", lambda: float("inf"))
    monkeypatch.setattr(free_processors._state, "last", None)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with FreeProcessors() as processors:
            threads = []
            for _ in range(3):
                processors.adapt()
                threads.append(torch.get_num_threads())
        # Of the load before the first step nothing is known.
        assert threads == [2, 1, 1]
        # The last look of that loop is too old for the next one.
        with FreeProcessors() as processors:
            processors.adapt()
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
