"""Commands on a pseudo-terminal that get key by key, and commands with an environment of their own.

The processes are forks of the server of tests/fault_injection/child.py.
"""

import io
import os
import pty
import runpy
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from tests.fault_injection.child import create_process

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 90.0  # the machine may be busy
CTRL_C = "\x03"
CTRL_D = "\x04"
BACKSPACE = "\x7f"
UP = "\x1b[A"
# Changes the process before the command begins; a function of a module, or a data class.
SetUp = Callable[[], None]


def run_forked_command(
    module: str,
    arguments: list[str],
    environment: dict[str, str],
    files: tuple[str, str, str],
    set_up: SetUp | None = None,
) -> None:
    """Run `python -m MODULE ARGUMENTS` in this process, with these files as standard streams.

    A terminal among them becomes the terminal of the process, as a shell does it.
    """
    import torch

    os.setsid()
    for path, descriptor in zip(files, range(3), strict=True):
        flags = os.O_RDWR if path.startswith("/dev/") else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags), descriptor)
    # As Python opens them, which leaves output unbuffered if a variable asks for it.
    buffering = 0 if environment.get("PYTHONUNBUFFERED") else -1
    streams = [
        io.TextIOWrapper(
            open(descriptor, mode, buffering if descriptor else -1, closefd=False),  # noqa: SIM115
            encoding="utf-8",
            line_buffering=descriptor > 0,
            write_through=descriptor > 0 and not buffering,
        )
        for descriptor, mode in enumerate(("rb", "wb", "wb"))
    ]
    sys.stdin, sys.stdout, sys.stderr = streams
    # Tests that run in the background (`make test &`) inherit that SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    sys.argv = [module, *arguments]
    if set_up is not None:
        set_up()
    # The server has imported the module already, of which runpy would warn.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Terminal:
    """The controlling side of the terminal of a process `python -m MODULE ARGUMENTS`."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        environment: dict[str, str],
        set_up: SetUp | None = None,
    ) -> None:
        self._descriptor, self._process_side = pty.openpty()
        name = os.ttyname(self._process_side)
        self.process = create_process(
            run_forked_command,
            module,
            arguments,
            {**environment, "TERM": "xterm"},
            (name, name, name),
            set_up,
        )
        self.process.start()
        self._output = b""

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def at_prompt(self, keys: str, prompt: str = "你：") -> None:
        """Type after the prompt; before it readline does not edit the line yet."""
        self.wait_for(prompt)
        self.type(keys)

    def type_and_see(self, keys: str, echo: str) -> None:
        """Type, and wait until `echo` is on the screen: the next keys find the line as it is."""
        self.type(keys)
        self.wait_for(echo)

    def interrupt_after(self, text: str) -> None:
        """Press Ctrl-C once `text` is on the screen and the process waits for a key.

        CPython's readline handles a signal only while it waits; one that arrives between an echo
        and that has no effect until the line ends. A test is fast enough to hit that moment, so it
        asks the kernel whether the process sleeps.
        """
        self.wait_for(text)
        deadline = time.monotonic() + TIMEOUT_SECONDS
        stat_file = Path(f"/proc/{self.process.pid}/stat")
        while stat_file.read_text().rpartition(")")[2].split()[0] != "S":
            assert time.monotonic() < deadline, "the process never waited for a key"
            time.sleep(0.001)
        self.type(CTRL_C)

    def wait_for(self, text: str) -> str:
        """Wait for `text`; return the output up to and with it and leave the rest unread."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while text.encode() not in self._output:
            assert self._read_more(deadline), (
                f"{text!r} is missing: {self._output.decode(errors='replace')!r}"
            )
        before, match, self._output = self._output.partition(text.encode())
        return (before + match).decode(errors="replace")

    def wait_for_bytes(self, count: int) -> None:
        """Wait for `count` bytes of output and leave them unread."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while len(self._output) < count:
            assert self._read_more(deadline), f"only {self._output!r} arrived"

    def wait_for_exit(self) -> str:
        """Wait for the process to end; return the rest of its output."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while self._read_more(deadline):
            pass
        self.process.join(max(1.0, deadline - time.monotonic()))
        return self._output.decode(errors="replace")

    def _read_more(self, deadline: float) -> bool:
        """Read a block of output; return False at its end and after the deadline."""
        timeout = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([self._descriptor], [], [], timeout)
        try:
            block = os.read(self._descriptor, 1 << 16) if ready else b""
        except OSError:  # how Linux reports that the process has closed the terminal
            block = b""
        if self._process_side >= 0:
            # The process has opened the terminal; from now on it is the only one to hold it open.
            os.close(self._process_side)
            self._process_side = -1
        self._output += block
        return bool(block)

    def hang_up(self) -> None:
        """Close the terminal, as closing a window or losing a connection does."""
        os.dup2(os.open(os.devnull, os.O_RDWR), self._descriptor)

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        os.close(self._descriptor)
        if self._process_side >= 0:
            os.close(self._process_side)
