"""The thread that owns the model: jobs in, their events out."""

import sys
import time
import traceback
from collections import deque
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Lock, Thread

from chat.serve.batch import Batch
from chat.serve.sequence import Event, Failed, Job, Said
from chat.load_model import Weights

FAULT = "a fault of the server; its terminal says more"
STOPPING = "the server is shutting down"
WAITED = "all rows were busy until the time of this request was up"


class Busy(Exception):
    """As many jobs as may be are running and waiting."""


class Engine:
    """Answers up to `rows` jobs at once; up to `waiting` more wait for a free row."""

    def __init__(self, weights: Weights, *, rows: int, waiting: int) -> None:
        self.rows, self.waiting = rows, waiting
        self._batch = Batch(weights)
        # SimpleQueue and Event, because `stop` is called from a signal handler: their methods may be interrupted.
        self._arrived: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = Flag()
        self._queue: deque[Job] = deque()
        self._lock, self._jobs = Lock(), 0
        self._thread = Thread(target=self._work, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End every job soon, and the thread. May be called from a signal handler."""
        self._stopping.set()
        self._arrived.put(None)

    def join(self) -> None:
        """Wait for the thread to end after `stop`."""
        self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive() and not self._stopping.is_set()

    @property
    def load(self) -> tuple[int, int]:
        """How many jobs are running and how many wait."""
        running = len(self._batch.rows)
        return running, max(0, self._jobs - running)

    def submit(self, job: Job) -> None:
        """Have a job done. `Busy` if there is no place for it."""
        tell = job.tell

        def counted(event: Event) -> None:
            if not isinstance(event, Said):
                with self._lock:
                    self._jobs -= 1
            tell(event)

        with self._lock:
            if self._jobs >= self.rows + self.waiting:
                raise Busy
            self._jobs += 1
        job.tell = counted
        self._arrived.put(job)

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                self._collect()
                self._batch.release(time.monotonic())
                self._admit()
                self._batch.step()
            except Exception:
                # One bad moment, such as memory that ran out, costs these answers and not the server.
                traceback.print_exc(file=sys.stderr)
                self._batch.fail(500, FAULT)
        self._batch.fail(503, STOPPING)
        self._collect()
        for job in self._queue:
            job.tell(Failed(503, STOPPING))

    def _admit(self) -> None:
        jobs = self._next()
        try:
            self._batch.admit(jobs)
        except Exception:
            # Those that the fault kept from getting a row: neither queue nor batch knows them any more.
            known = [row.job for row in self._batch.rows]
            for job in jobs:
                if job not in known:
                    job.tell(Failed(500, FAULT))
            raise

    def _collect(self) -> None:
        """Take in what has arrived; with nothing to do, wait for it."""
        idle = not self._batch.rows and not self._queue and not self._stopping.is_set()
        try:
            while True:
                job = self._arrived.get(block=idle)
                if job is not None:
                    self._queue.append(job)
                idle = False
        except Empty:
            return

    def _next(self) -> list[Job]:
        """The jobs that get a row now, those that waited longest first; those that wait in vain are told so."""
        now = time.monotonic()
        chosen: list[Job] = []
        free = self.rows - len(self._batch.rows)
        for _ in range(len(self._queue)):
            job = self._queue.popleft()
            if job.gone or now >= job.deadline:
                job.tell(Failed(503, WAITED))
            elif len(chosen) < free:
                chosen.append(job)
            else:
                self._queue.append(job)
        return chosen
