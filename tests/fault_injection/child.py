"""Run commands as real processes that start at once, with faults injected from outside.

The processes are forks of a server that has imported PyTorch (`multiprocessing`'s fork server),
which saves each of them seconds. A fault is a function that replaces parts of modules in the child
before `main` is called; the program itself has no code for faults.

Forks of a server share its hash seed, and with it the iteration order of sets of strings. A run
that is the reference for others therefore needs another process: a fresh interpreter, or the
process of the test, which is not a fork of the server (`run_in_test_process`).
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from common.errors import run_main

PRELOADED_MODULES = [
    "train.pretrain",
    "train.pretrain_run",
    "train.sft",
    "train.sft_run",
    "train.dpo",
    "train.dpo_run",
    "train.grpo",
    "train.grpo_run",
    "data.prepare.pipeline",
    "torch.utils.tensorboard",
    "torch._dynamo",
    "tests.fault_injection.freeze",  # the last one
]
Fault = Callable[[], None]


def create_process(
    target: Callable[..., None], *arguments: Any, fresh_interpreter: bool = False
) -> BaseProcess:
    """Return a process that will call `target`: a fork of the server, or a fresh interpreter."""
    if fresh_interpreter:
        return multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context.Process(target=target, args=arguments)


def set_up_command_process(argv: Sequence[str], stdout_file: Path, stderr_file: Path) -> None:
    """Prepare this process to run a command: `argv`, output files, one thread, no matmul timing."""
    import numpy as np
    import torch

    import train.monitoring.throughput

    for path, descriptor in ((stdout_file, 1), (stderr_file, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    # Forks share the state of NumPy's global generator, which two processes of a user do not.
    np.random.seed()
    torch.set_num_threads(1)
    # The measurement for the MFU takes seconds at every start, and more on a busy machine.
    train.monitoring.throughput.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
    sys.argv = list(argv)


class ChildProcess:
    """A process of `python -m MODULE ARGUMENTS` that prints to the file `log`."""

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
        """Return whether the process is running."""
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """Return the file descriptor that `select` reports as readable when the process ends."""
        return self._process.sentinel

    def send_signal(self, signal_number: int) -> None:
        """Send a signal if the process is running."""
        if self._process.pid is not None and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal_number)

    def wait(self, timeout_seconds: float = 120.0) -> int:
        """Return the exit code, -n after signal n. Kills a late process and raises TimeoutError."""
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
        """Wait for a condition; return False if the process ends first.

        Raises TimeoutError if neither happens in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_reached():
            if not self.is_alive:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"not reached:\n{self.output}")
            time.sleep(0.005)
        return True


def _run_main(module: str, arguments: list[str], log: Path, fault: Fault | None) -> None:
    """Become `python -m MODULE ARGUMENTS` with the output in `log` and the fault injected."""
    set_up_command_process([module, *arguments], log, log)
    if fault is not None:
        fault()
    run_main(importlib.import_module(module).main)


def run_in_test_process(module: str, arguments: Sequence[str]) -> str:
    """Run a command of training to its end in this process; return what it prints.

    This costs no start of an interpreter, and the hash seed is another than that of the forks.
    """
    import torch

    import train.monitoring.throughput

    output, num_threads = io.StringIO(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(sys, "argv", [module, *arguments])
        patch.setattr(train.monitoring.throughput, "matmul_flops", lambda *_: 1e9)
        # As in the forks: another number of threads gives sums with other last bits.
        torch.set_num_threads(1)
        try:
            importlib.import_module(module).main()
        finally:
            torch.set_num_threads(num_threads)
    return output.getvalue()


@contextlib.contextmanager
def running_child(
    module: str, arguments: list[str], log: Path, fault: Fault | None = None
) -> Iterator[ChildProcess]:
    """Yield a running child process, which is killed at the end of the block."""
    child = ChildProcess(module, arguments, log, fault)
    try:
        yield child
    finally:
        child.send_signal(9)
        child.wait()
