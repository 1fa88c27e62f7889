"""The thread that owns the model: jobs in, their events out."""

import sys
import time
import traceback
from collections import deque
from queue import Empty, SimpleQueue
from threading import Event as Flag
from threading import Lock, Thread

from chat.load_model import LoadedModel
from chat.serve.batch import ContinuousBatch
from chat.serve.sequence import AnswerEvent, Failure, Job, TextDelta

INTERNAL_ERROR_MESSAGE = "a fault of the server; its terminal says more"
SHUTDOWN_MESSAGE = "the server is shutting down"
QUEUE_TIMEOUT_MESSAGE = "all rows were busy until the time of this request was up"


class QueueFull(Exception):
    """As many jobs as may be are running and waiting."""


class Engine:
    """Answers up to `max_sequences` jobs at once; up to `max_queued` more wait for a free row."""

    def __init__(self, weights: LoadedModel, *, max_sequences: int, max_queued: int) -> None:
        self.max_sequences, self.max_queued = max_sequences, max_queued
        self._batch = ContinuousBatch(weights)
        # SimpleQueue and Event, because `stop` is called from a signal handler: their methods may be interrupted.
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._stopping = Flag()
        self._queue: deque[Job] = deque()
        self._lock, self._num_jobs = Lock(), 0
        self._thread = Thread(target=self._run_loop, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End every job soon, and the thread. May be called from a signal handler."""
        self._stopping.set()
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the thread to end after `stop`."""
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether jobs are worked on."""
        return self._thread.is_alive() and not self._stopping.is_set()

    @property
    def request_counts(self) -> tuple[int, int]:
        """How many jobs are running and how many wait."""
        running = len(self._batch.sequences)
        return running, max(0, self._num_jobs - running)

    def submit(self, job: Job) -> None:
        """Have a job done. `Busy` if there is no place for it."""
        emit = job.emit

        def counted(event: AnswerEvent) -> None:
            if not isinstance(event, TextDelta):
                with self._lock:
                    self._num_jobs -= 1
            emit(event)

        with self._lock:
            if self._num_jobs >= self.max_sequences + self.max_queued:
                raise QueueFull
            self._num_jobs += 1
        job.emit = counted
        self._inbox.put(job)

    def _run_loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._drain_inbox()
                self._batch.drop_finished(time.monotonic())
                self._admit()
                self._batch.decode_step()
            except Exception:
                # One bad moment, such as memory that ran out, costs these answers and not the server.
                traceback.print_exc(file=sys.stderr)
                self._batch.fail_all(500, INTERNAL_ERROR_MESSAGE)
        self._batch.fail_all(503, SHUTDOWN_MESSAGE)
        self._drain_inbox()
        for job in self._queue:
            job.emit(Failure(503, SHUTDOWN_MESSAGE))

    def _admit(self) -> None:
        jobs = self._pop_admissible()
        try:
            self._batch.admit(jobs)
        except Exception:
            # Those that the fault kept from getting a row: neither queue nor batch knows them any more.
            batch_jobs = [row.job for row in self._batch.sequences]
            for job in jobs:
                if job not in batch_jobs:
                    job.emit(Failure(500, INTERNAL_ERROR_MESSAGE))
            raise

    def _drain_inbox(self) -> None:
        """Take in what has arrived; with nothing to do, wait for it."""
        idle = not self._batch.sequences and not self._queue and not self._stopping.is_set()
        try:
            while True:
                job = self._inbox.get(block=idle)
                if job is not None:
                    self._queue.append(job)
                idle = False
        except Empty:
            return

    def _pop_admissible(self) -> list[Job]:
        """The jobs that get a row now, those that waited longest first; those that wait in vain are told so."""
        now = time.monotonic()
        admissible: list[Job] = []
        num_free = self.max_sequences - len(self._batch.sequences)
        for _ in range(len(self._queue)):
            job = self._queue.popleft()
            if job.is_cancelled or now >= job.deadline:
                job.emit(Failure(503, QUEUE_TIMEOUT_MESSAGE))
            elif len(admissible) < num_free:
                admissible.append(job)
            else:
                self._queue.append(job)
        return admissible
