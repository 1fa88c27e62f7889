"""Tests of the measurements of the machine and of this process."""

import subprocess
import sys
from pathlib import Path

import pytest

PEAK = "from common.machine import peak_memory_bytes; print(peak_memory_bytes())"


@pytest.mark.slow
def test_peak_memory_excludes_parent_process(root: Path) -> None:
    """Prevents reporting the memory of the shell or test suite that started the program."""
    large = bytes(bytearray(b"x") * 400_000_000)
    process = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True
    )
    assert 5e6 < int(process.stdout) < len(large) / 2
