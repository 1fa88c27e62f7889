"""Ctrl-C and SIGTERM as a wish to stop: between two micro-batches, in an evaluation at once; a second leaves at once."""

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from train import distributed
from train.throughput import duration

# systemd and Slurm signal every process of a job, and torchrun hands its own signal on: within so many seconds it is one
# wish, however often it is said.
ECHO_SECONDS = 1.0


class _Stopped(BaseException):
    """Leads out of work that may be left at once."""


class StopRequest:
    """True once a signal asked the run to stop. Installed while it is used as a context."""

    def __init__(self, needed: Callable[[], float | None]) -> None:
        """`needed()`: seconds that it may take to stop and save, or None where that is not known yet."""
        self.name = ""
        self._needed = needed
        self._asked = 0.0
        self._leave = False
        self._before: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def unless_asked(self, work: Callable[[], None]) -> bool:
        """Do `work`, which a first signal ends at once and an earlier one forbids; whether it came to its end."""
        if self.name:
            return False
        try:
            self._leave = True
            work()
            self._leave = False
        except _Stopped:
            return False
        finally:
            self._leave = False
        return True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            if time.monotonic() - self._asked > ECHO_SECONDS:
                raise KeyboardInterrupt
            return
        self.name, self._asked = signal.Signals(number).name, time.monotonic()
        if not distributed.first():
            return
        # Not print: the signal may have come in the middle of one.
        os.write(1, f"\n{self.name}: {self._doing()}; once more to leave at once\n".encode())
        if self._leave:
            self._leave = False
            raise _Stopped

    def _doing(self) -> str:
        if self._leave:
            return "leaving this evaluation"
        needed = self._needed()
        when = "as soon as the rows under way are through" if needed is None else f"within about {duration(max(1, needed))}"
        return f"saving the last finished step and stopping, {when}"
