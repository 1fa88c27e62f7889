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

PRELOAD = ["train.pretrain", "train.sft", "data.prepare", "torch.utils.tensorboard", "torch._dynamo"]
Fault = Callable[[], None]


def process(target: Callable[..., None], *arguments: Any, anew: bool = False) -> BaseProcess:
    """A process, not yet started, that calls `target`: a fork of the server, or a Python that is started `anew`."""
    if anew:
        return multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context.Process(target=target, args=arguments)


def become(words: Sequence[str], out: Path, err: Path) -> None:
    """Make this process one with the command line `words`, of one thread, that prints into the files `out` and `err`.

    The machine's rate is not measured. NumPy's own generator is seeded anew: forks would all draw the same from it.
    """
    import numpy as np
    import torch

    import train.clock

    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), number)
    np.random.seed()
    torch.set_num_threads(1)
    # Measured at every start, for the share of it that is shown: seconds, and more where the machine has other work.
    train.clock.matmul_flops = lambda *_: 1e9  # type: ignore[assignment]
    sys.argv = list(words)


class Child:
    """One run of `python -m MODULE ARGUMENTS`; what it prints goes into the file `log`. For `anew` see `process`."""

    def __init__(
        self, module: str, arguments: list[str], log: Path, fault: Fault | None = None, *, anew: bool = False
    ) -> None:
        self.log = log
        self._process = process(_main, module, arguments, log, fault, anew=anew)
        self._process.start()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    @property
    def sentinel(self) -> int:
        """What `select` says is readable once it has ended."""
        return self._process.sentinel

    def send(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self._process.pid is not None and self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code; of one killed by signal n, -n. TimeoutError, and it is killed, if it runs longer."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {seconds} s:\n{self.said}")
        return self._process.exitcode

    @property
    def said(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def until(self, reached: Callable[[], bool], seconds: float = 60.0) -> bool:
        """Wait until it is somewhere; False if it ends before. TimeoutError if neither happens."""
        deadline = time.monotonic() + seconds
        while not reached():
            if not self.alive:
                return False
            if time.monotonic() > deadline:
                raise TimeoutError(f"never got there:\n{self.said}")
            time.sleep(0.0005)
        return True


def _main(module: str, arguments: list[str], log: Path, fault: Fault | None) -> None:
    become([module, *arguments], log, log)
    if fault is not None:
        fault()
    run_main(importlib.import_module(module).main)


@contextlib.contextmanager
def started(module: str, arguments: list[str], log: Path, fault: Fault | None = None) -> Iterator[Child]:
    """A `Child` that does not outlive the block."""
    child = Child(module, arguments, log, fault)
    try:
        yield child
    finally:
        child.send(9)
        child.wait()
