"""Decoding beside other work: threads without a processor of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
