"""Commands as real processes with an output file, an error file and an exit code.

The processes are forks of a server that has imported PyTorch, see tests/fault_injection/child.py.
Commands in fresh interpreters are tested by test_readme.py and reliability/test_bad_options.py.
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
    """A fault: training pauses after this step until a signal requests a stop."""

    step: int

    def __call__(self) -> None:
        """Inject the fault into this process."""
        from train.trainer import Trainer

        original_step = Trainer.train_step
        pause_step = self.step

        def step_after_pause(trainer: Trainer) -> None:
            while trainer.state.step == pause_step and not trainer.stop_requested:
                time.sleep(0.002)
            original_step(trainer)

        Trainer.train_step = step_after_pause  # type: ignore[method-assign]


class CommandProcess:
    """A running `python -m MODULE ARGUMENTS` in the root of the project."""

    def __init__(
        self,
        module: str,
        *arguments: str,
        fault: Fault | None = None,
    ) -> None:
        self._output_folder = tempfile.TemporaryDirectory(prefix="babyllama-test-")
        self._output_files = [Path(self._output_folder.name, name) for name in ("out", "err")]
        self._process = create_process(
            _run_module,
            module,
            arguments,
            *self._output_files,
            fault,
        )
        self._process.start()

    def send_signal_when(
        self, signal_number: int, is_reached: Callable[[], bool], timeout_seconds: float = 600.0
    ) -> None:
        """Send a signal as soon as a condition holds.

        The process must not end before: a fault such as `PauseAfterStep` sees to that. Kills the
        process and raises TimeoutError if the condition does not hold in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_reached():
            if time.monotonic() > deadline or not self._process.is_alive():
                self._process.kill()
                raise TimeoutError(
                    f"not reached in {timeout_seconds} s, or ended before: {self.wait().stderr}"
                )
            time.sleep(0.002)
        assert self._process.pid is not None
        os.kill(self._process.pid, signal_number)

    def wait(self, timeout_seconds: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Wait for the end; return the exit code (-n after signal n), stdout and stderr.

        Kills the process and raises TimeoutError if it is late.
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


def run_command(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS` to its end."""
    return CommandProcess(module, *arguments).wait()


def _run_module(
    module: str,
    arguments: tuple[str, ...],
    stdout_file: Path,
    stderr_file: Path,
    fault: Fault | None,
) -> None:
    """Become `python -m MODULE ARGUMENTS`, with the fault injected before it starts."""
    os.chdir(ROOT)
    set_up_command_process([module, *arguments], stdout_file, stderr_file)
    if fault is not None:
        fault()
    # runpy warns about a module that has been imported already, here by the fork server.
    warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
