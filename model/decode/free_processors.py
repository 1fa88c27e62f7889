"""Decoding with as many threads as there are processors that nothing else uses.

A decode step is a hundred short parallel operations, at the end of which all threads wait for the
last one. Beside a busy process that one often has no processor, and two threads on two processors
decode 0.6 times as fast as one thread on the free processor (docs/results.md).
"""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

# Seconds between two looks at the load, which is counted in hundredths of a second; and after how
# many the mean since the last look of an earlier loop says too little about the present.
_INTERVAL, _LONGEST_INTERVAL = 0.25, 2.0
_STATISTICS = Path("/proc/stat")
# The columns of a line of it, in clock ticks since the start of the machine.
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")
_BUSY_COLUMNS = ("user", "system", "irq", "softirq")


class _Times(NamedTuple):
    """Seconds: of the clock, and of all processors that all processes, or this one, were busy."""

    clock: float
    all_busy: float
    own_busy: float


class _State(threading.local):
    """What the loops of one thread share: PyTorch has a number of threads for each that calls."""

    num_loops = 0
    most_threads = 1
    # The last look of any loop: the next one begins with the load since then.
    last: _Times | None = None


_state = _State()
_is_switched_off = False


def keep_all_threads() -> None:
    """Let the loops of this process keep their threads whatever the load.

    For training: with other threads sums are rounded in another order, and two runs of one command
    have to end in the same bits.
    """
    global _is_switched_off
    _is_switched_off = True


def most_threads() -> int:
    """Return the most threads that operations of this thread may get."""
    return _state.most_threads if _state.num_loops else torch.get_num_threads()


class FreeProcessors:
    """The context of a loop of decode steps, which calls `adapt` before each of them.

    The number of threads on entry is the most that are used, and is restored; of several loops that
    take turns, as generators do, when the last one ends. Nothing changes where the environment
    chooses a number of threads (OMP_NUM_THREADS), in training, nor where the load is unknown.
    """

    def __enter__(self) -> "FreeProcessors":
        most = most_threads()
        has_choice = most > 1 and "OMP_NUM_THREADS" not in os.environ and not _is_switched_off
        self._adapts = has_choice and _read_times() is not None
        self._has_looked = False
        _state.most_threads = most
        _state.num_loops += 1
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _state.num_loops -= 1
        if self._adapts and _state.num_loops == 0:
            torch.set_num_threads(_state.most_threads)

    def adapt(self) -> None:
        """Set the number of threads by the load since the last look, unless that was just now."""
        last = _state.last
        if not self._adapts or (last and time.monotonic() - last.clock < _INTERVAL):
            return
        now = _state.last = _read_times()
        has_looked, self._has_looked = self._has_looked, True
        if now is None or last is None:
            return
        seconds, num_threads = now.clock - last.clock, _state.most_threads
        # A step of this loop may take longer, above all with threads that wait for processors.
        if has_looked or seconds < _LONGEST_INTERVAL:
            busy = (now.all_busy - last.all_busy) - (now.own_busy - last.own_busy)
            num_free = round((os.cpu_count() or 1) - busy / seconds)
            num_threads = min(max(num_free, 1), num_threads)
        torch.set_num_threads(num_threads)


def _read_times() -> _Times | None:
    """Return the times until now, or None where the system does not say them."""
    try:
        _, *columns = _STATISTICS.read_text().split("\n", 1)[0].split()
    except OSError:
        return None
    ticks = dict(zip(_COLUMNS, map(int, columns), strict=False))
    # Processes of low priority make room, unless this is one of them.
    names = (*_BUSY_COLUMNS, "nice") if os.nice(0) > 0 else _BUSY_COLUMNS
    all_busy = sum(ticks[name] for name in names) / os.sysconf("SC_CLK_TCK")
    return _Times(time.monotonic(), all_busy, time.process_time())
