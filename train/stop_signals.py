"""Stop and save the run on Ctrl-C or SIGTERM; a second signal ends the process at once."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from train import distributed
from train.monitoring.throughput import format_duration

# A process may get one request as several signals: systemd and Slurm signal every process of a job,
# and torchrun forwards the signal that it gets, which on a busy machine takes it seconds. Signals
# within this time are one request.
DUPLICATE_SIGNAL_SECONDS = 1.0
TORCHRUN_DUPLICATE_SIGNAL_SECONDS = 10.0


class _WorkAborted(BaseException):
    """Raised by the signal handler to abort work that may be abandoned.

    It is not an Exception, so that no `except Exception` within the work catches it.
    """


class StopRequest:
    """Whether a signal has requested the run to stop: false at first, true from then on.

    Signals are handled inside a `with` block of the object, and after it if one requested a stop:
    its duplicates may come until the process has ended.
    """

    def __init__(self, estimate_seconds: Callable[[], float | None]) -> None:
        """`estimate_seconds` returns the seconds that stopping will take, or None if unknown."""
        # The signal that requested the stop, None without a request.
        self._signal: signal.Signals | None = None
        self._estimate_seconds = estimate_seconds
        self._request_time = 0.0
        self._can_abort = False
        self._previous_handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self._signal is not None

    @property
    def exit_code(self) -> int:
        """Return the exit code of a stopped run, which is that of a command the signal ended.

        Shells report such a command with 128 and the number of the signal.
        """
        # Under torchrun the signal may have come to another process only.
        return 128 + (self._signal or signal.SIGTERM)

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self:
            return
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def run_unless_requested(self, work: Callable[[], None]) -> bool:
        """Run `work` unless a stop was requested already; a signal aborts it midway.

        Returns whether `work` finished.
        """
        if self:
            return False
        try:
            self._can_abort = True
            work()
            # Cleared here as well, so that a signal just after `work` raises within the `try`.
            self._can_abort = False
        except _WorkAborted:
            return False
        finally:
            self._can_abort = False
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Record the first signal; end the process on a second one.

        Raises _WorkAborted if work is running that may be abandoned.
        """
        if self:
            is_alone = distributed.world_size() == 1
            duplicate_seconds = (
                DUPLICATE_SIGNAL_SECONDS if is_alone else TORCHRUN_DUPLICATE_SIGNAL_SECONDS
            )
            if time.monotonic() - self._request_time > duplicate_seconds:
                raise KeyboardInterrupt(number)
            return
        self._signal = signal.Signals(number)
        self._request_time = time.monotonic()
        # Only the main process prints, and only it runs work that may be abandoned.
        if not distributed.is_main_process():
            return
        message = f"\n{self._signal.name}: {self._describe_action()}; once more to leave at once\n"
        # Not `print`, which is not reentrant: the signal may have come while it was running.
        # The reader of a pipe (`| tee`) gets the same Ctrl-C and may have ended already.
        with contextlib.suppress(OSError):
            os.write(1, message.encode())
        if self._can_abort:
            self._can_abort = False
            raise _WorkAborted

    def _describe_action(self) -> str:
        """Return what happens because of the signal, for the terminal."""
        # Evaluations are the only work that is aborted.
        if self._can_abort:
            return "leaving this evaluation"
        seconds = self._estimate_seconds()
        if seconds is None:
            when = "as soon as the current rows are done"
        else:
            when = f"within about {format_duration(max(1, seconds))}"
        return f"saving the last finished step and stopping, {when}"
