"""Decoding with as many threads as there are processors that nothing else uses.

A decode step is a hundred short parallel operations, at the end of which all threads wait for the
last one. Beside a busy process that one often has no processor, and two threads on two processors
decode half as fast as one thread on the processor that is free (docs/results.md).
"""

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import torch

# Seconds between two looks at the load, which is counted in hundredths of a second.
_INTERVAL = 0.25
_STATISTICS = Path("/proc/stat")
# The columns of a line of it, in clock ticks since the start of the machine.
_BUSY_COLUMNS = ("user", "nice", "system", "irq", "softirq")
_COLUMNS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq")


class _Times(NamedTuple):
    """Seconds: of the clock, and of all processors that all processes, or this one, were busy."""

    clock: float
    all_busy: float
    own_busy: float


class _State(threading.local):
    """What the loops of one thread share: PyTorch has a number of threads for each of its users."""

    num_loops = 0
    most_threads = 1
    # The last look of any loop: the next one begins with the load since then.
    last: _Times | None = None


_state = _State()


class FreeProcessors:
    """The context of a loop of decode steps, which calls `adapt` before each of them.

    The number of threads on entry is the most that are used, and is restored; of several loops that
    take turns, as generators do, when the last one ends. Nothing changes where the environment
    chooses a number of threads (OMP_NUM_THREADS), nor where the load is unknown.
    """

    def __enter__(self) -> "FreeProcessors":
        if _state.num_loops == 0:
            _state.most_threads = torch.get_num_threads()
        _state.num_loops += 1
        has_choice = _state.most_threads > 1 and "OMP_NUM_THREADS" not in os.environ
        self._adapts = has_choice and _STATISTICS.exists()
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
        if last is None:
            return
        busy = (now.all_busy - last.all_busy) - (now.own_busy - last.own_busy)
        num_free = round((os.cpu_count() or 1) - busy / (now.clock - last.clock))
        torch.set_num_threads(min(max(num_free, 1), _state.most_threads))


def _read_times() -> _Times:
    """Return the times until now."""
    _, *columns = _STATISTICS.read_text().split("\n", 1)[0].split()
    ticks = dict(zip(_COLUMNS, map(int, columns), strict=False))
    all_busy = sum(ticks[name] for name in _BUSY_COLUMNS) / os.sysconf("SC_CLK_TCK")
    return _Times(time.monotonic(), all_busy, time.process_time())
