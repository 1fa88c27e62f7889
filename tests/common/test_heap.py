"""Memory that is freed and allocated again."""

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

# Each turn allocates 256 MB in tensors of 1 MB and frees them, as a training step its activations.
# Whether glibc returns them by default depends on what lies above them; here it is told to.
SCRIPT = """
import ctypes, resource, sys
import torch
from common.heap import keep_freed_memory

def turn():
    tensors = [torch.ones(1 << 18) for _ in range(256)]

ctypes.CDLL(None).mallopt(-3, 1 << 17)
keep_freed_memory()
for _ in range(3):
    turn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    turn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
NUM_PAGES = 4 * 256 * 2**20 // resource.getpagesize()


def count_page_faults(root: Path, **settings: str) -> int:
    """Return the page faults of four turns in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=root,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_is_allocated_again_without_page_faults(root: Path) -> None:
    """Prevents steps that spend a tenth of their time on pages which they have just given back."""
    assert count_page_faults(root) < NUM_PAGES / 100


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_settings_of_the_environment_are_kept(root: Path) -> None:
    """Prevents a user's own limit of the heap from being overridden."""
    assert count_page_faults(root, MALLOC_TRIM_THRESHOLD_="131072") > NUM_PAGES / 2
