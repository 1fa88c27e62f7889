"""Ctrl-C and SIGTERM as a wish to stop: between two micro-batches, in an evaluation at once; a second leaves at once."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from train import distributed
from train.throughput import format_duration

# systemd and Slurm signal every process of a job, and torchrun hands its own signal on: within so many seconds it is one
# wish, however often it is said.
DUPLICATE_SIGNAL_SECONDS = 1.0


class _WorkAborted(BaseException):
    """Leads out of work that may be left at once."""


class StopRequest:
    """True once a signal asked the run to stop. Installed while it is used as a context."""

    def __init__(self, estimate_seconds: Callable[[], float | None]) -> None:
        """`estimate_seconds()`: seconds that it may take to stop and save, or None where that is not known yet."""
        self.signal_name = ""
        self._estimate_seconds = estimate_seconds
        self._request_time = 0.0
        self._can_abort = False
        self._previous_handlers: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.signal_name)

    def __enter__(self) -> "StopRequest":
        self._previous_handlers = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def run_unless_requested(self, work: Callable[[], None]) -> bool:
        """Do `work`, which a first signal ends at once and an earlier one forbids; whether it came to its end."""
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
        self.signal_name, self._request_time = signal.Signals(number).name, time.monotonic()
        if not distributed.is_main_process():
            return
        # Not print: the signal may have come in the middle of one.
        os.write(
            1,
            f"\n{self.signal_name}: {self._describe_action()}; once more to leave at once\n".encode(),
        )
        if self._can_abort:
            self._can_abort = False
            raise _WorkAborted

    def _describe_action(self) -> str:
        if self._can_abort:
            return "leaving this evaluation"
        needed = self._estimate_seconds()
        when = (
            "as soon as the rows under way are through"
            if needed is None
            else f"within about {format_duration(max(1, needed))}"
        )
        return f"saving the last finished step and stopping, {when}"
