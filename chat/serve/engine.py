"""The engine: a thread that owns the model and answers requests, several at a time."""

import sys
import time
import traceback
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread

from chat.load_model import LoadedModel
from chat.serve.sequence import (
    ActiveSequence,
    AnswerEvent,
    Failure,
    GenerationRequest,
    TextDelta,
)
from model.decode.free_processors import FreeProcessors
from model.decode.scheduler import Scheduler

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
        self._loaded_model = loaded_model
        # Used by the engine's thread alone, except for the length of `running`.
        self._scheduler = Scheduler[ActiveSequence](
            loaded_model.model, max_rows=max_sequences, answers_at_once=True
        )
        # A signal handler calls `stop`. SimpleQueue and Event are safe there; a queue.Queue could
        # deadlock on the lock that the interrupted thread holds.
        self._inbox: SimpleQueue[GenerationRequest | None] = SimpleQueue()
        self._stop_event = Event()
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
        num_running = len(self._scheduler.running)
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
        with FreeProcessors() as free_processors:
            while not self._stop_event.is_set():
                try:
                    self._step(free_processors)
                except Exception:
                    # An error, such as a lack of memory, ends the running answers but not the
                    # server.
                    traceback.print_exc(file=sys.stderr)
                    self._fail_running(500, INTERNAL_ERROR_MESSAGE)
        self._fail_running(503, SHUTDOWN_MESSAGE)
        self._receive_requests()
        for sequence in self._scheduler.waiting:
            sequence.fail(503, SHUTDOWN_MESSAGE)

    def _step(self, free_processors: FreeProcessors) -> None:
        """Receive requests, drop those that nobody waits for, and continue the answers."""
        self._receive_requests()
        self._drop_expired(time.monotonic())
        free_processors.adapt()
        self._scheduler.step()

    def _receive_requests(self) -> None:
        """Move requests from the inbox to the scheduler; block if there is nothing else to do."""
        has_work = self._scheduler.has_work or self._stop_event.is_set()
        try:
            while True:
                request = self._inbox.get(block=not has_work)
                if request is not None:
                    self._add_sequence(request)
                has_work = True
        except Empty:
            return

    def _add_sequence(self, request: GenerationRequest) -> None:
        """Let a request wait for a place. If that raises, fail the request."""
        loaded_model = self._loaded_model
        try:
            sequence = ActiveSequence(
                request,
                loaded_model.tokenizer,
                loaded_model.context_length,
                loaded_model.model.config.stop_ids,
            )
        except Exception:
            request.emit(Failure(500, INTERNAL_ERROR_MESSAGE))
            raise
        self._scheduler.add(sequence)

    def _drop_expired(self, now: float) -> None:
        """End the answers whose client has disconnected or whose deadline is over.

        `now` is on the clock of time.monotonic.
        """
        scheduler = self._scheduler
        for sequence in list(scheduler.waiting):
            if sequence.request.is_cancelled or now >= sequence.request.deadline:
                scheduler.waiting.remove(sequence)
                sequence.fail(503, QUEUE_TIMEOUT_MESSAGE)
        for sequence in scheduler.running:
            if sequence.request.is_cancelled:
                sequence.finish("cancelled")
            elif now >= sequence.request.deadline:
                sequence.finish("timeout")
        scheduler.drop_finished()

    def _fail_running(self, status: int, message: str) -> None:
        """Fail every running answer that is not finished, and release the batch."""
        for sequence in self._scheduler.running:
            if not sequence.is_finished:
                sequence.fail(status, message)
        self._scheduler.drop_all()
