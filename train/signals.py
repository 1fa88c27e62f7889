"""Ctrl-C and SIGTERM as a wish to stop after the step; a second Ctrl-C leaves at once."""

import os
import signal
from types import FrameType


class StopRequest:
    """True once a signal asked the run to stop. Installed while it is used as a context."""

    def __init__(self) -> None:
        self.name = ""
        self._before: dict[int, object] = {}

    def __bool__(self) -> bool:
        return bool(self.name)

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.name:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        # Not print: the signal may have come in the middle of one.
        os.write(1, f"\n{self.name}: finishing this step and saving; once more to leave at once\n".encode())
