"""Run preparation units in this process or in a pool of worker processes."""

import contextlib
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from common.errors import UserError
from data.prepare.worker import PrepareWorker, WorkUnit, init_worker, process_unit


class WorkerPool:
    """Process units in this process (`worker`) or in a `pool` with at most `max_pending` units.

    `manifests` has the manifests of finished units by index, `peak_memory` the bytes of the largest
    worker.
    """

    def __init__(
        self, worker: PrepareWorker | None, pool: ProcessPoolExecutor | None, max_pending: int
    ) -> None:
        """Use either `worker` or `pool`; the other one is None."""
        self._worker = worker
        self._pool = pool
        self._max_pending = max_pending
        self._pending: set[Future[Any]] = set()
        self.manifests: dict[int, dict[str, Any]] = {}
        self.peak_memory = 0

    def submit(self, unit: WorkUnit) -> None:
        """Process a unit in this process, or queue it; blocks while too many units are queued."""
        if self._worker is not None:
            self._record_result(self._worker.process(unit))
        if self._pool is not None:
            self._pending.add(self._pool.submit(process_unit, unit))
            self._collect(self._max_pending)

    def join(self) -> None:
        """Wait for all queued units."""
        self._collect(0)

    def _collect(self, max_pending: int) -> None:
        """Wait until at most `max_pending` units are queued, and record the finished ones."""
        while len(self._pending) > max_pending:
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                self._record_result(future.result())

    def _record_result(self, result: tuple[int, dict[str, Any], int]) -> None:
        """Store the manifest and the peak memory that `PrepareWorker.process` returned."""
        index, manifest, peak = result
        self.manifests[index] = manifest
        self.peak_memory = max(self.peak_memory, peak)


@contextlib.contextmanager
def open_worker_pool(num_workers: int, arguments: tuple[Any, ...]) -> Iterator[WorkerPool]:
    """Yield a pool of `num_workers` processes; `arguments` are those of `PrepareWorker`.

    With one worker the units are processed in this process. Raises UserError if a worker process
    dies.
    """
    if num_workers == 1:
        yield WorkerPool(PrepareWorker(*arguments), pool=None, max_pending=0)
        return
    # spawn: forked processes inherit locks of threads that they do not have.
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), init_worker, arguments
    )
    try:
        # One unit more than workers, so that a worker which finishes has the next one at once.
        yield WorkerPool(worker=None, pool=pool, max_pending=num_workers + 1)
    except BrokenProcessPool:
        raise UserError(
            "a worker process died (killed, or out of memory): run the command again to go on, "
            "with fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
