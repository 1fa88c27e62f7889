"""How a command begins and ends."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from common.errors import run_main

def main():
    held = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.write(number, b"a library's words\\n")
    assert held > 2 and sys.stdin.read() == ""
    print("ours", flush=True)
    print("ours", file=sys.stderr, flush=True)

run_main(main)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_needs_no_standard_streams(root: Path, tmp_path: Path, closed: str) -> None:
    """A traceback about None, after all the work; a library's words in the first file that the command writes."""
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *program],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_bytes() == b""
