"""Training runs as real processes that start at once, with faults put into them from outside.

They are forked by a server that has imported everything (`multiprocessing`'s fork server), which spares each the seconds
that PyTorch takes to import. The program itself knows nothing of the faults: a fault is a function that replaces parts of
the modules in the child before `main` is called.

Forks of one server share its hash seed: a set of words has one order in all of them. What they are compared with is
therefore made by a process that is started anew, which has a seed of its own, as the processes of a user have.
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
    """A process, not yet started, that calls `target`: a fork of the server, or a Python that is started `fresh_interpreter`."""
    if fresh_interpreter:
        return multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED_MODULES)
    return context.Process(target=target, args=arguments)


def set_up_command_process(argv: Sequence[str], stdout_file: Path, stderr_file: Path) -> None:
    """Make this process one with the command line `argv`, of one thread, that prints into the files `stdout_file` and `stderr_file`.

    The machine's rate is not measured. NumPy's own generator is seeded anew: forks would all draw the same from it.
    """
    import numpy as np
    import torch

    import train.throughput

    for path, descriptor in ((stdout_file, 1), (stderr_file, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
    np.random.seed()
    torch.set_num_threads(1)
    # Measured at every start, for the share of it that is shown: seconds, and more where the machine has other work.
    train.throughput.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
    sys.argv = list(argv)


class ChildProcess:
    """One run of `python -m MODULE ARGUMENTS`; what it prints goes into the file `log`. For `anew` see `process`."""

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
        """Whether it still runs."""
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """What `select` says is readable once it has ended."""
        return self._process.sentinel

    def send_signal(self, signal_number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process.pid is not None and self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal_number)

    def wait(self, timeout_seconds: float = 120.0) -> int:
        """Its exit code; of one killed by signal n, -n. TimeoutError, and it is killed, if it runs longer."""
        self._process.join(timeout_seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout_seconds} s:\n{self.output}")
        return self._process.exitcode

    @property
    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait_until(self, is_reached: Callable[[], bool], timeout_seconds: float = 60.0) -> bool:
        """Wait until it is somewhere; False if it ends before. TimeoutError if neither happens."""
        deadline = time.monotonic() + timeout_seconds
        while not is_reached():
            if not self.is_alive:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"never got there:\n{self.output}")
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
    """A `Child` that does not outlive the block."""
    child = ChildProcess(module, arguments, log, fault)
    try:
        yield child
    finally:
        child.send_signal(9)
        child.wait()
