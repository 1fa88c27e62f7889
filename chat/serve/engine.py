"""The engine: a thread that owns the model and schedules requests into the batch."""

import sys
import time
import traceback
from collections import deque
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from chat.load_model import LoadedModel
from chat.serve.batch import ContinuousBatch
from chat.serve.sequence import AnswerEvent, Failure, GenerationRequest, TextDelta

INTERNAL_ERROR_MESSAGE = "internal error; the server's terminal shows the details"
SHUTDOWN_MESSAGE = "the server is shutting down"
QUEUE_TIMEOUT_MESSAGE = "the request timed out while it waited for other requests to finish"


class QueueFull(Exception):
    """A request was refused, because as many as allowed are running and waiting."""


class Engine:
    """Run up to `max_sequences` requests at once, with up to `max_queued` more waiting."""

    def __init__(self, loaded_model: LoadedModel, *, max_sequences: int, max_queued: int) -> None:
        self.max_sequences = max_sequences
        self.max_queued = max_queued
        self._batch = ContinuousBatch(loaded_model)
        # A signal handler calls `stop`. SimpleQueue and Event are safe there; a queue.Queue could
        # deadlock on the lock that the interrupted thread holds.
        self._inbox: SimpleQueue[GenerationRequest | None] = SimpleQueue()
        self._stop_event = Event()
        self._waiting: deque[GenerationRequest] = deque()  # used by the engine's thread alone
        self._num_requests = 0  # running and waiting, the inbox included
        self._num_requests_lock = Lock()
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Fail all requests at the next step and end the thread. Safe in a signal handler."""
        self._stop_event.set()
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the thread to end after `stop`."""
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Return whether the engine processes requests: it has been started and not stopped."""
        return self._thread.is_alive() and not self._stop_event.is_set()

    @property
    def request_counts(self) -> tuple[int, int]:
        """Return the numbers of running and of waiting requests."""
        num_running = len(self._batch.sequences)
        # The engine's thread changes both numbers meanwhile, hence the max.
        return num_running, max(0, self._num_requests - num_running)

    def add_request(self, request: GenerationRequest) -> None:
        """Queue a request. Raises QueueFull if there are too many. Safe in any thread."""
        emit = request.emit

        # The request counts until its last event, in whichever way it ends.
        def emit_and_count(event: AnswerEvent) -> None:
            if not isinstance(event, TextDelta):  # the last event of a request
                with self._num_requests_lock:
                    self._num_requests -= 1
            emit(event)

        with self._num_requests_lock:
            if self._num_requests >= self.max_sequences + self.max_queued:
                raise QueueFull
            self._num_requests += 1
        request.emit = emit_and_count
        self._inbox.put(request)

    def _run(self) -> None:
        """Process requests until `stop`, then fail the remaining ones. The engine's thread."""
        while not self._stop_event.is_set():
            try:
                self._step()
            except Exception:
                # An error, such as a lack of memory, ends the running answers but not the server.
                traceback.print_exc(file=sys.stderr)
                self._batch.fail_all(500, INTERNAL_ERROR_MESSAGE)
        self._batch.fail_all(503, SHUTDOWN_MESSAGE)
        self._receive_requests()
        for request in self._waiting:
            request.emit(Failure(503, SHUTDOWN_MESSAGE))

    def _step(self) -> None:
        """Receive and schedule requests, prefill the scheduled ones, and decode one step."""
        self._receive_requests()
        self._batch.drop_expired(time.monotonic())
        self._prefill(self._schedule())
        self._batch.decode_step()

    def _receive_requests(self) -> None:
        """Move requests from the inbox to the queue; block if there is nothing else to do."""
        has_work = bool(self._batch.sequences or self._waiting or self._stop_event.is_set())
        try:
            while True:
                request = self._inbox.get(block=not has_work)
                if request is not None:
                    self._waiting.append(request)
                has_work = True
        except Empty:
            return

    def _schedule(self) -> list[GenerationRequest]:
        """Return the requests to prefill now, first come first served; fail expired ones."""
        now = time.monotonic()
        num_free = self.max_sequences - len(self._batch.sequences)
        scheduled: list[GenerationRequest] = []
        still_waiting: deque[GenerationRequest] = deque()
        for request in self._waiting:
            if request.is_cancelled or now >= request.deadline:
                request.emit(Failure(503, QUEUE_TIMEOUT_MESSAGE))
            elif len(scheduled) < num_free:
                scheduled.append(request)
            else:
                still_waiting.append(request)
        self._waiting = still_waiting
        return scheduled

    def _prefill(self, requests: list[GenerationRequest]) -> None:
        """Prefill requests. If that raises, fail those that the batch does not hold."""
        try:
            self._batch.prefill(requests)
        except Exception:
            # `_run` fails the requests that have a sequence in the batch; here are the others.
            running_requests = [sequence.request for sequence in self._batch.sequences]
            for request in requests:
                if request not in running_requests:
                    request.emit(Failure(500, INTERNAL_ERROR_MESSAGE))
            raise
