"""Commands as real processes that start at once: forks of a server that has imported PyTorch, as in bench/child.py.

A Python that is started anew imports for seconds. That commands start so is seen in test_readme.py and in
reliability/test_bad_options.py; here it is a process with a file for what it prints and one for its errors, and it ends by
its exit code or by a signal.
"""

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from bench.child import PRELOAD

ROOT = Path(__file__).parent.parent


class Command:
    """`python -m MODULE WORDS…` in the project's root, under way; one thread, and the machine's rate is not measured."""

    def __init__(self, module: str, *words: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="babyllama-test-")
        self._said = [Path(self._folder.name, name) for name in ("out", "err")]
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        self._process = context.Process(target=_run, args=(module, words, *map(str, self._said)))
        self._process.start()

    def send_when(self, number: int, reached: Callable[[], bool], seconds: float = 600.0) -> None:
        """Send it a signal as soon as it is somewhere; none if it ends before. TimeoutError, and it is killed, if neither
        happens."""
        deadline = time.monotonic() + seconds
        while not reached() and self._process.is_alive():
            if time.monotonic() > deadline:
                self._process.kill()
                raise TimeoutError(f"not there after {seconds} s")
            time.sleep(0.002)
        if self._process.pid is not None and self._process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def done(self, seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Wait for its end: its exit code (of one killed by signal n, -n), what it printed and its errors.

        TimeoutError, and it is killed, if it runs longer.
        """
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {seconds} s")
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._said)
        self._folder.cleanup()
        return subprocess.CompletedProcess([], self._process.exitcode, out, err)


def run(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE WORDS…` from its start to its end."""
    return Command(module, *words).done()


def _run(module: str, words: tuple[str, ...], out: str, err: str) -> None:
    import torch

    import train.clock

    os.chdir(ROOT)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644), number)
    torch.set_num_threads(1)
    # Measured at every start, for the share of it that is shown: seconds, and more where the machine has other work.
    train.clock.matmul_flops = lambda *_: 1e9
    sys.argv = [module, *words]
    # What the server has imported is run once more, as the program.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
