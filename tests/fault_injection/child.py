"""Run training commands as child processes that start fast, with faults injected.

The children are forks of a server that has imported PyTorch (`multiprocessing`'s fork server),
which saves seconds for each. A fault is a function that patches modules in the child before its
`main` is called; the program has no hooks for faults.

All forks of one server share its hash seed, so a set of strings has the same order in each. The
run that they are compared with therefore comes from a fresh interpreter, with another hash seed.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from common.errors import run_main

PRELOADED_MODULES = [
    "train.pretrain",
    "train.sft",
    "data.prepare",
    "torch.utils.tensorboard",
    "torch._dynamo",
]
Fault = Callable[[], None]


def create_process(
    target: Callable[..., None], *arguments: Any, fresh_interpreter: bool = False
) -> BaseProcess:
    """Return a process, not yet started, that calls `target`.

    The process is a fork of the server, or a new Python if `fresh_interpreter` is set.
    """
    if fresh_interpreter:
        return multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context.Process(target=target, args=arguments)


def set_up_command_process(argv: Sequence[str], stdout_file: Path, stderr_file: Path) -> None:
    """Turn this process into one with the command line `argv`, one thread and redirected output.

    The matmul rate is not measured. NumPy's generator is seeded again, as all forks would otherwise
    draw the same numbers.
    """
    import numpy as np
    import torch

    import train.throughput

    for path, descriptor in ((stdout_file, 1), (stderr_file, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    np.random.seed()
    torch.set_num_threads(1)
    # The rate is only used to display the MFU, and measuring it takes seconds at every start.
    train.throughput.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
    sys.argv = list(argv)


class ChildProcess:
    """One run of `python -m MODULE ARGUMENTS` whose output goes to the file `log`.

    For `fresh_interpreter` see `create_process`.
    """

    def __init__(
        self,
        module: str,
        arguments: list[str],
        log: Path,
        fault: Fault | None = None,
        *,
        fresh_interpreter: bool = False,
    ) -> None:
        self.log = log
        self._process = create_process(
            _run_main, module, arguments, log, fault, fresh_interpreter=fresh_interpreter
        )
        self._process.start()

    @property
    def is_alive(self) -> bool:
        """Return whether the process is still running."""
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """Return the descriptor that `select` reports as readable once the process has ended."""
        return self._process.sentinel

    def send_signal(self, signal_number: int) -> None:
        """Send a signal, if the process is still running."""
        if self._process.pid is not None and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal_number)

    def wait(self, timeout_seconds: float = 120.0) -> int:
        """Wait for the process and return its exit code, -n after signal n.

        Raises TimeoutError, and kills the process, if it runs longer than the timeout.
        """
        self._process.join(timeout_seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout_seconds} s:\n{self.output}")
        return self._process.exitcode

    @property
    def output(self) -> str:
        """Return the output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_until(self, is_reached: Callable[[], bool], timeout_seconds: float = 60.0) -> bool:
        """Wait until the condition holds; return False if the process ends first.

        Raises TimeoutError if neither happens.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_reached():
            if not self.is_alive:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"the condition never held:\n{self.output}")
            time.sleep(0.0005)
        return True


def _run_main(module: str, arguments: list[str], log: Path, fault: Fault | None) -> None:
    set_up_command_process([module, *arguments], log, log)
    if fault is not None:
        fault()
    run_main(importlib.import_module(module).main)


@contextlib.contextmanager
def running_child(
    module: str, arguments: list[str], log: Path, fault: Fault | None = None
) -> Iterator[ChildProcess]:
    """Start a `ChildProcess` and kill it at the end of the block if it is still running."""
    child = ChildProcess(module, arguments, log, fault)
    try:
        yield child
    finally:
        child.send_signal(9)
        child.wait()
