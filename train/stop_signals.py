"""Ctrl-C and SIGTERM as a request to stop and save; a second signal ends the process at once."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from train import distributed
from train.monitoring.throughput import format_duration

# systemd and Slurm signal every process of a job, and torchrun forwards its own signal: signals
# within so many seconds are one request.
DUPLICATE_SIGNAL_SECONDS = 1.0


class _WorkAborted(BaseException):
    """Leaves work that may be abandoned; not an Exception, so that no handler in it catches it."""


class StopRequest:
    """True once a signal asked the run to stop. Handles signals inside a `with` block."""

    def __init__(self, estimate_seconds: Callable[[], float | None]) -> None:
        """`estimate_seconds` returns the time that stopping will take, None if it is unknown."""
        self.signal_name = ""
        self._estimate_seconds = estimate_seconds
        self._request_time = 0.0
        self._can_abort = False
        self._previous_handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def run_unless_requested(self, work: Callable[[], None]) -> bool:
        """Run `work` unless a stop was requested; a signal aborts it. Return if it finished."""
        if self.signal_name:
            return False
        try:
            self._can_abort = True
            work()
            self._can_abort = False
        except _WorkAborted:
            return False
        finally:
            self._can_abort = False
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name:
            if time.monotonic() - self._request_time > DUPLICATE_SIGNAL_SECONDS:
                raise KeyboardInterrupt
            return
        self.signal_name = signal.Signals(number).name
        self._request_time = time.monotonic()
        if not distributed.is_main_process():
            return
        message = f"\n{self.signal_name}: {self._describe_action()}; once more to leave at once\n"
        # Not print, which may be running already when the signal comes.
        os.write(1, message.encode())
        if self._can_abort:
            self._can_abort = False
            raise _WorkAborted

    def _describe_action(self) -> str:
        if self._can_abort:
            return "leaving this evaluation"
        seconds = self._estimate_seconds()
        if seconds is None:
            when = "as soon as the current rows are done"
        else:
            when = f"within about {format_duration(max(1, seconds))}"
        return f"saving the last finished step and stopping, {when}"
