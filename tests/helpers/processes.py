"""Commands as real processes that start at once: forks of a server that has imported PyTorch, as in tests/fault_injection/child.py.

A Python that is started anew imports for seconds. That commands start so is seen in test_readme.py and in
reliability/test_bad_options.py; here it is a process with a file for what it prints and one for its errors, and it ends by
its exit code or by a signal.
"""

import os
import runpy
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fault_injection.child import Fault, create_process, set_up_command_process

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class PauseAfterStep:
    """The fault: training goes no further than this step until a signal asks it to stop, so that it cannot end before."""

    step: int

    def __call__(self) -> None:
        """Put it into this process."""
        from train.trainer import Trainer

        original_step = Trainer.train_step
        pause_step = self.step

        def step(trainer: Trainer) -> None:
            while trainer.state.step == pause_step and not trainer.stop_requested:
                time.sleep(0.002)
            original_step(trainer)

        Trainer.train_step = step  # type: ignore[method-assign]


class CommandProcess:
    """`python -m MODULE WORDS…` in the project's root, under way; for `fault` and `anew` see tests/fault_injection/child.py."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        fault: Fault | None = None,
        fresh_interpreter: bool = False,
    ) -> None:
        self._output_folder = tempfile.TemporaryDirectory(prefix="babyllama-test-")
        self._output_files = [Path(self._output_folder.name, name) for name in ("out", "err")]
        self._process = create_process(
            _run_module,
            module,
            arguments,
            *self._output_files,
            fault,
            fresh_interpreter=fresh_interpreter,
        )
        self._process.start()

    def send_signal_when(
        self, signal_number: int, is_reached: Callable[[], bool], timeout_seconds: float = 600.0
    ) -> None:
        """Send it a signal as soon as it is somewhere; it must have a `fault` that keeps it from ending before.

        TimeoutError, and it is killed, if it does not come there.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_reached():
            if time.monotonic() > deadline or not self._process.is_alive():
                self._process.kill()
                raise TimeoutError(
                    f"not there after {timeout_seconds} s, or ended before: {self.wait().stderr}"
                )
            time.sleep(0.002)
        assert self._process.pid is not None
        os.kill(self._process.pid, signal_number)

    def wait(self, timeout_seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Wait for its end: its exit code (of one killed by signal n, -n), what it printed and its errors.

        TimeoutError, and it is killed, if it runs longer.
        """
        self._process.join(timeout_seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"still running after {timeout_seconds} s")
        out, err = (
            path.read_text(encoding="utf-8") if path.exists() else "" for path in self._output_files
        )
        self._output_folder.cleanup()
        return subprocess.CompletedProcess([], self._process.exitcode, out, err)


def run_command(
    module: str, *arguments: str, fresh_interpreter: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python -m MODULE WORDS…` from its start to its end."""
    return CommandProcess(module, *arguments, fresh_interpreter=fresh_interpreter).wait()


def _run_module(
    module: str,
    arguments: tuple[str, ...],
    stdout_file: Path,
    stderr_file: Path,
    fault: Fault | None,
) -> None:
    os.chdir(ROOT)
    set_up_command_process([module, *arguments], stdout_file, stderr_file)
    if fault is not None:
        fault()
    # What the server has imported is run once more, as the program.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
