"""The engine answers every request exactly once, whatever happens."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from chat import load_model
from chat.serve import engine as engine_module
from chat.serve.engine import (
    INTERNAL_ERROR_MESSAGE,
    QUEUE_TIMEOUT_MESSAGE,
    SHUTDOWN_MESSAGE,
    Engine,
    QueueFull,
)
from chat.serve.sequence import ActiveSequence, Failure, Finish
from model.decode.batched_inference import InferenceBatch
from model.decode.scheduler import Scheduler
from tests.chat.serve.conftest import TrackedRequest, generate_alone, make_prompts

INTERNAL_ERROR = Failure(500, INTERNAL_ERROR_MESSAGE)
ENDLESS = 15_000  # tokens

StartEngine = Callable[..., Engine]


@pytest.fixture
def start_engine(loaded_model: load_model.LoadedModel) -> Iterator[StartEngine]:
    """Start engines with a long context; they are stopped after the test."""
    engines: list[Engine] = []
    long_context = replace(loaded_model, context_length=16_000)

    def start(max_sequences: int, max_queued: int) -> Engine:
        engine = Engine(long_context, max_sequences=max_sequences, max_queued=max_queued)
        engines.append(engine)
        engine.start()
        return engine

    yield start
    for engine in engines:
        engine.stop()
        engine.join()


@pytest.mark.slow
def test_engine_answers_concurrent_requests(
    start_engine: StartEngine, loaded_model: load_model.LoadedModel
) -> None:
    """Prevents requests that are lost or answered twice if more come than run at once."""
    engine = start_engine(3, 20)
    tracked_requests = [
        TrackedRequest(prompt, 12, seed=n)
        for n, prompt in enumerate(make_prompts(loaded_model.tokenizer, 20))
    ]
    for tracked in tracked_requests:
        engine.add_request(tracked.request)
    for tracked in tracked_requests:
        expected_text = generate_alone(loaded_model, tracked.request)
        assert tracked.result() == (expected_text, Finish("length", 12))
    assert engine.request_counts == (0, 0)


@pytest.mark.slow
def test_cancelled_request_frees_its_place(start_engine: StartEngine) -> None:
    """Prevents a sequence that is decoded for a client that has gone."""
    engine = start_engine(1, 1)
    cancelled, following = TrackedRequest([1, 9], ENDLESS), TrackedRequest([1, 6], 5)
    engine.add_request(cancelled.request)
    cancelled.wait_for_text()
    engine.add_request(following.request)
    cancelled.request.is_cancelled = True
    _, finish = cancelled.result()
    assert isinstance(finish, Finish) and finish.finish_reason == "cancelled"
    assert finish.num_tokens < ENDLESS
    assert following.result()[1] == Finish("length", 5)


def test_deadline_ends_running_and_waiting_requests(start_engine: StartEngine) -> None:
    """Prevents a client that waits for ever, in the queue or for the end of an answer."""
    engine = start_engine(1, 4)
    running, following = TrackedRequest([1, 9], ENDLESS), TrackedRequest([1, 6], 5)
    expired = TrackedRequest([1, 7], 5, deadline=0.0)
    engine.add_request(running.request)
    running.wait_for_text()
    engine.add_request(expired.request)
    assert expired.result() == ("", Failure(503, QUEUE_TIMEOUT_MESSAGE))
    engine.add_request(following.request)
    running.request.deadline = time.monotonic()
    _, finish = running.result()
    assert isinstance(finish, Finish) and finish.finish_reason == "timeout"
    assert following.result()[1] == Finish("length", 5)


def test_full_queue_rejects_requests(start_engine: StartEngine) -> None:
    """Prevents an endless queue, and one whose places are never given free."""
    engine = start_engine(1, 1)
    for _ in range(2):
        running, waiting = TrackedRequest([1, 9], ENDLESS), TrackedRequest([1, 9], 3)
        engine.add_request(running.request)
        engine.add_request(waiting.request)
        with pytest.raises(QueueFull):
            engine.add_request(TrackedRequest([1, 9]).request)
        running.request.is_cancelled = True
        assert waiting.result()[1] == Finish("length", 3)
        running.result()


def test_engine_error_fails_only_running_requests(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents a server that is up and never answers again."""
    engine = start_engine(2, 4)
    running = TrackedRequest([1, 9], ENDLESS)
    engine.add_request(running.request)
    running.wait_for_text()

    def fail_once(self: Engine, now: float) -> None:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(Engine, "_drop_expired", fail_once)
    assert running.result()[1] == INTERNAL_ERROR
    following = TrackedRequest([1, 9], 3)
    engine.add_request(following.request)
    assert following.result()[1] == Finish("length", 3)
    assert "no memory left" in capfd.readouterr().err


@pytest.mark.parametrize("failing_name", ["reserve", "prefill"])
def test_engine_error_in_prefill_fails_new_requests_once(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch, failing_name: str
) -> None:
    """Prevents a client that hangs, or gets two failures, if prefill runs out of memory."""
    engine = start_engine(2, 0)
    running, new = TrackedRequest([1, 9], ENDLESS), TrackedRequest([1, 8], 3)
    engine.add_request(running.request)
    running.wait_for_text()

    def fail_once(*arguments: Any) -> Any:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(InferenceBatch, failing_name, fail_once)
    engine.add_request(new.request)
    assert new.result() == ("", INTERNAL_ERROR)
    assert running.result()[1] == INTERNAL_ERROR
    following = [TrackedRequest([1, 7], 3), TrackedRequest([1, 6], 3)]
    for tracked in following:
        engine.add_request(tracked.request)  # both places are free again
    assert [tracked.result()[1] for tracked in following] == [Finish("length", 3)] * 2
    assert new.has_no_more_events and running.has_no_more_events


def test_engine_error_before_a_request_waits_fails_it_once(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a client that hangs because its request is lost before the queue."""
    engine = start_engine(1, 1)

    def fail_once(*arguments: Any) -> Any:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(engine_module, "ActiveSequence", fail_once)
    new, following = TrackedRequest([1, 9], 3), TrackedRequest([1, 8], 3)
    engine.add_request(new.request)
    assert new.result() == ("", INTERNAL_ERROR)
    engine.add_request(following.request)
    assert following.result()[1] == Finish("length", 3)


def test_finished_request_is_not_failed_by_later_error(
    loaded_model: load_model.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a second last event for a request that ended in the step of an error."""
    engine = Engine(loaded_model, max_sequences=2, max_queued=0)
    short, long = TrackedRequest([1, 9], 1), TrackedRequest([1, 8], 3)

    original = Scheduler.drop_finished

    def fail_once(self: Scheduler[ActiveSequence]) -> list[ActiveSequence]:
        if not any(sequence.is_finished for sequence in self.running):
            return original(self)
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(Scheduler, "drop_finished", fail_once)
    for tracked in (short, long):
        engine.add_request(tracked.request)
    engine.start()  # after both were added, so that they are prefilled together
    assert short.result()[1] == Finish("length", 1)
    assert long.result()[1] == INTERNAL_ERROR
    engine.stop()
    engine.join()
    assert short.has_no_more_events and long.has_no_more_events


def test_stop_fails_all_requests(start_engine: StartEngine) -> None:
    """Prevents clients that hang when the server stops."""
    engine = start_engine(1, 4)
    tracked_requests = [TrackedRequest([1, 9], ENDLESS) for _ in range(3)]
    for tracked in tracked_requests:
        engine.add_request(tracked.request)
    tracked_requests[0].wait_for_text()
    engine.stop()
    results = [tracked.result()[1] for tracked in tracked_requests]
    assert results == [Failure(503, SHUTDOWN_MESSAGE)] * 3
    assert not engine.is_alive
