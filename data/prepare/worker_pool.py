"""One worker in this process, or a pool of them."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from common.errors import UserError
from data.prepare.worker import Part, Worker, process, start_worker


class Maker:
    """Makes parts in this process, or in a pool that is never more than one part ahead of each worker."""

    def __init__(self, worker: Worker | None, pool: ProcessPoolExecutor | None, ahead: int) -> None:
        self._worker, self._pool, self._ahead = worker, pool, ahead
        self._pending: set[Future[Any]] = set()
        self.made: dict[int, dict[str, Any]] = {}
        self.peak = 0

    def make(self, part: Part) -> None:
        """Make a part now or soon."""
        if self._worker is not None:
            self._note(self._worker.process(part))
        if self._pool is not None:
            self._pending.add(self._pool.submit(process, part))
            self._collect(self._ahead)

    def finish(self) -> None:
        """Wait for all parts under way."""
        self._collect(0)

    def _collect(self, leave: int) -> None:
        while len(self._pending) > leave:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                self._note(future.result())

    def _note(self, result: tuple[int, dict[str, Any], int]) -> None:
        index, facts, peak = result
        self.made[index] = facts
        self.peak = max(self.peak, peak)


@contextlib.contextmanager
def maker(workers: int, arguments: tuple[Any, ...]) -> Iterator[Maker]:
    """A `Maker` with `workers` processes; `arguments` are those of `data.prepare.worker.Worker`."""
    if workers == 1:
        yield Maker(Worker(*arguments), None, 0)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker, arguments)
    try:
        yield Maker(None, pool, workers + 1)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, or out of memory): run the command again to go on, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
