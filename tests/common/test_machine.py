"""What is said of the machine and of this process."""

import subprocess
import sys
from pathlib import Path

PEAK = "from common.machine import peak_memory_bytes; print(peak_memory_bytes())"


def test_peak_memory_excludes_parent_process(root: Path) -> None:
    """Figures of memory that are those of the benchmark, the shell or the test suite that started the program."""
    large = bytes(bytearray(b"x") * 400_000_000)
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=root, capture_output=True, text=True, check=True
    )
    assert 5e6 < int(done.stdout) < len(large) / 2
