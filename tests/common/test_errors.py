"""Tests of the start and exit of a command."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError, run_main

PROGRAM = """
import os, sys
from common.errors import run_main

def main():
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    for number in (1, 2):
        os.write(number, b"output of a library\\n")
    assert descriptor > 2 and sys.stdin.read() == ""
    print("ours", flush=True)
    print("ours", file=sys.stderr, flush=True)

run_main(main)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_needs_no_standard_streams(root: Path, tmp_path: Path, closed: str) -> None:
    """Prevents a traceback about None, and library output in the first file of the command."""
    program = [sys.executable, "-c", PROGRAM, str(tmp_path / "file")]
    process = subprocess.run(
        ["bash", "-c", f'exec "$@" {closed}', "bash", *program],
        cwd=root,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "file").read_bytes() == b""


def test_closed_pipe_is_no_success(root: Path) -> None:
    """Prevents `(make pretrain && make sft) | tee log` from going on after tee has ended."""
    reader, writer = os.pipe()
    os.close(reader)
    program = "from common.errors import run_main; run_main(lambda: print('output'))"
    process = subprocess.run(
        [sys.executable, "-c", program], cwd=root, stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("one\ntwo"), 2, "error: one\nerror: two\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt(signal.SIGTERM), 143, "interrupted\n"),
    ],
)
def test_user_error_exits_with_2_without_traceback(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a traceback, or exit status 0, for an error that the user can fix."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_main(main)
    assert exit_info.value.code == code and capsys.readouterr().err == message


def test_internal_error_keeps_traceback() -> None:
    """Prevents a fault of the program from being shown as an error of the user."""

    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_main(main)
