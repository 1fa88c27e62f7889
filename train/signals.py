"""Ctrl-C and SIGTERM as a wish to stop after the step, or in an evaluation; a second one leaves at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from train import parallel


class _Stopped(BaseException):
    """Leads out of work that may be left at once."""


class StopRequest:
    """True once a signal asked the run to stop. Installed while it is used as a context."""

    def __init__(self) -> None:
        self.name = ""
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
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        if not parallel.first():
            return
        # Not print: the signal may have come in the middle of one.
        doing = "leaving this evaluation" if self._leave else "finishing this step and saving"
        os.write(1, f"\n{self.name}: {doing}; once more to leave at once\n".encode())
        if self._leave:
            self._leave = False
            raise _Stopped
