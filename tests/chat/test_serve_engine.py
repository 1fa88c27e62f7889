"""Answers made together are those made alone, and none is lost."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from chat import load_model
from chat.serve import batch as batch_module
from chat.serve.batch import OVERFLOW_MESSAGE, ContinuousBatch
from chat.serve.engine import (
    INTERNAL_ERROR_MESSAGE,
    QUEUE_TIMEOUT_MESSAGE,
    SHUTDOWN_MESSAGE,
    Engine,
    QueueFull,
)
from chat.serve.sequence import (
    ActiveSequence,
    AnswerEvent,
    Failure,
    Finish,
    Job,
    TextDelta,
)
from model.decode.fast.inference_model import inference_model_for
from model.decode.generate import Sampling, generate
from model.tokenizer.base import Tokenizer

GREEDY, SAMPLED, FAR = Sampling(temperature=0.0), Sampling(1.0, 40, 0.9, 1.2, 4), 1e12


class Asked:
    """A job and what it was told."""

    def __init__(
        self, prompt: list[int], most: int = 30, sampling: Sampling = GREEDY, **options: Any
    ) -> None:
        self._events: SimpleQueue[AnswerEvent] = SimpleQueue()
        facts = {"seed": 0, "deadline": FAR, **options}
        self.job = Job(prompt, most, sampling, emit=self._events.put, **facts)

    def end(self) -> tuple[str, AnswerEvent]:
        """The whole text, and the last event, waited for."""
        text = ""
        while isinstance(event := self._events.get(timeout=60), TextDelta):
            text += event.text
        assert self._events.empty(), "something came after the end"
        return text, event

    @property
    def quiet(self) -> bool:
        """Whether nothing came after the end."""
        return self._events.empty()

    def begun(self) -> None:
        """Wait until something was said."""
        assert isinstance(self._events.get(timeout=60), TextDelta)


@pytest.fixture(scope="module")
def loaded(endless: Path) -> load_model.LoadedModel:
    """A model that speaks nonsense until it is stopped, with an `<eos>` that comes when it is drawn."""
    found = load_model.load_chat_model(endless, torch.device("cpu"), "fp32")
    return replace(found, context_length=200)


def prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Prompts of very different lengths."""
    text = "镇上的人都会划船，会做灯笼，也会讲故事。" * 9
    return [
        [tokenizer.bos_id, *tokenizer.encode(text[n : n + 3 + 17 * n % 90])] for n in range(count)
    ]


def alone(loaded: load_model.LoadedModel, job: Job) -> str:
    """What the job's prompt gets from `generate`."""
    most = min(job.max_new_tokens, loaded.context_length - len(job.prompt))
    ids = list(generate(loaded.model, job.prompt, job.sampling, max_new_tokens=most, seed=job.seed))
    return loaded.tokenizer.decode(ids)


@pytest.mark.parametrize(
    "samplings",
    [[GREEDY], [SAMPLED], [GREEDY, GREEDY, SAMPLED]],
    ids=["greedy", "sampled", "mixed"],
)
def test_answers_in_changing_batch_match_single_answers(
    loaded: load_model.LoadedModel, samplings: list[Sampling]
) -> None:
    """An answer that depends on who else is answered, or on when they came and went."""
    asked = [
        Asked(prompt, 5 + 11 * n % 40, samplings[n % len(samplings)], seed=n)
        for n, prompt in enumerate(prompts(loaded.tokenizer, 14))
    ]
    batch, coming, together = ContinuousBatch(loaded), list(asked), 0
    for step in range(200):
        if step % 3 == 0:
            batch.admit(
                [
                    coming.pop().job
                    for _ in range(min(len(coming), 1 + step % 2, 6 - len(batch.sequences)))
                ]
            )
        batch.decode_step()
        together = max(together, len(batch.sequences))
        if not coming and not batch.sequences:
            break
    assert together == 6, "they were not answered together"
    for each in asked:
        text, over = each.end()
        assert (
            text == alone(loaded, each.job)
            and isinstance(over, Finish)
            and over.finish_reason in ("length", "eos")
        )


def test_logits_are_computed_only_for_rows_that_need_them(endless: Path) -> None:
    """Two thirds of the work for nothing where all are greedy; a penalty passed over because the request is greedy."""
    loaded = load_model.load_chat_model(endless, torch.device("cpu"), "fp32")
    head = inference_model_for(loaded.model).head

    def text(**penalty: float) -> str:
        """What a row says beside one without penalties."""
        batch, asked = ContinuousBatch(loaded), Asked([1, 9], 20, **penalty)
        batch.admit([Asked([1, 8], 5).job, asked.job])
        while batch.sequences:
            batch.decode_step()
        return asked.end()[0]

    plain = text()
    assert (
        plain == alone(loaded, Asked([1, 9], 20).job)
        and head._transposed_weight is None
        and head._argmax_filter is not None
    )
    assert (
        len({plain, text(frequency_penalty=2.0), text(presence_penalty=-2.0)}) == 3
        and head._transposed_weight is not None
    )


def test_engine_answers_concurrent_requests(loaded: load_model.LoadedModel) -> None:
    """Jobs that are lost, answered twice or never, where more come than there are rows."""
    engine = Engine(loaded, max_sequences=3, max_queued=20)
    engine.start()
    asked = [Asked(prompt, 12, seed=n) for n, prompt in enumerate(prompts(loaded.tokenizer, 20))]
    for each in asked:
        engine.submit(each.job)
    for each in asked:
        assert each.end() == (alone(loaded, each.job), Finish("length", 12))
    assert engine.request_counts == (0, 0)
    engine.stop()
    engine.join()


def test_answer_stops_at_context_length(loaded: load_model.LoadedModel) -> None:
    """Positions that the model was never trained on."""
    batch, asked = ContinuousBatch(loaded), Asked(prompts(loaded.tokenizer, 3)[2] * 4, 5000)
    batch.admit([asked.job])
    while batch.sequences:
        batch.decode_step()
    left = loaded.context_length - len(asked.job.prompt)
    assert asked.end() == (alone(loaded, asked.job), Finish("context", left))


def test_answer_stops_at_any_stop_id(
    loaded: load_model.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Llama 3 that goes on behind <|end_of_text|>, because its turns end with <|eot_id|>."""
    prompt = prompts(loaded.tokenizer, 3)[2]
    said = list(generate(loaded.model, prompt, GREEDY, max_new_tokens=20))
    stop = said.index(said[7])
    stops = replace(loaded.model.config, more_stop_ids=(9999, said[stop]))
    monkeypatch.setattr(loaded.model, "config", stops)
    batch, asked = ContinuousBatch(loaded), Asked(prompt, 20)
    batch.admit([asked.job])
    while batch.sequences:
        batch.decode_step()
    assert asked.end() == (loaded.tokenizer.decode(said[:stop]), Finish("eos", stop))


def test_penalties_follow_openai_protocol(loaded: load_model.LoadedModel) -> None:
    """A penalty on the prompt, of the wrong sign, or that forgets how often an id was said."""
    for logits, expected in (
        ((2.0, 1.45, 0.8), 401),
        ((2.06, 1.45, 0.8), 5),
        ((2.0, 1.56, 0.8), 400),
    ):
        asked = Asked([1, 401, 401], 9, frequency_penalty=0.5, presence_penalty=0.25)
        row = ActiveSequence(asked.job, loaded.tokenizer, 10_000, 200, loaded.model.config.stop_ids)
        for index in (5, 5, 400):
            row.accept_token(
                row.sample_token(
                    torch.full((10_000,), -9.0).index_fill(0, torch.tensor(index), 9.0)
                )
            )
        last = torch.full((10_000,), -9.0)
        last[[5, 400, 401]] = torch.tensor(logits)
        row.accept_token(row.sample_token(last))
        assert row.answer_ids == [5, 5, 400, expected]


def test_a_stop_string_ends_the_answer(loaded: load_model.LoadedModel) -> None:
    """An answer that goes on in the batch after its stop string."""
    asked = Asked(prompts(loaded.tokenizer, 2)[1], 40)
    whole = alone(loaded, asked.job)
    stop = whole[12:15]
    asked.job.stop_strings = ["不会有的", stop]
    batch = ContinuousBatch(loaded)
    batch.admit([asked.job])
    while batch.sequences:
        batch.decode_step()
    text, over = asked.end()
    assert (
        text == whole[: whole.index(stop)]
        and isinstance(over, Finish)
        and over.finish_reason == "stop"
        and over.num_tokens < 40
    )


Started = Callable[..., Engine]


@pytest.fixture
def start(loaded: load_model.LoadedModel) -> Iterator[Started]:
    """Engines that are stopped after the test."""
    engines: list[Engine] = []

    def begin(rows: int, waiting: int, model: load_model.LoadedModel = loaded) -> Engine:
        engines.append(Engine(model, max_sequences=rows, max_queued=waiting))
        engines[-1].start()
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()
        engine.join()


def test_disconnected_and_timed_out_requests_free_their_slot(
    start: Started, loaded: load_model.LoadedModel
) -> None:
    """A row that is computed for nobody, a client that waits for ever."""
    engine = start(1, 4, replace(loaded, context_length=16_000))
    leaver, late = Asked([1, 9], 15_000), Asked([1, 8], 15_000)
    vain, next_one = Asked([1, 7], 5, deadline=0.0), Asked([1, 6], 5)
    engine.submit(leaver.job)
    leaver.begun()
    engine.submit(vain.job)
    assert vain.end() == ("", Failure(503, QUEUE_TIMEOUT_MESSAGE)), (
        "it waits for a row although its time is up"
    )
    engine.submit(late.job)
    leaver.job.is_cancelled = True
    _, over = leaver.end()
    assert isinstance(over, Finish) and over.finish_reason == "gone" and over.num_tokens < 15_000
    late.begun()
    engine.submit(next_one.job)
    late.job.deadline = time.monotonic()
    _, over = late.end()
    assert isinstance(over, Finish) and over.finish_reason == "timeout"
    assert next_one.end()[1] == Finish("length", 5)


def test_full_queue_rejects_requests(start: Started, loaded: load_model.LoadedModel) -> None:
    """A queue without an end, or one whose places are never given free."""
    engine = start(1, 1, replace(loaded, context_length=16_000))
    for _ in range(2):
        first, second = Asked([1, 9], 15_000), Asked([1, 9], 3)
        engine.submit(first.job)
        engine.submit(second.job)
        with pytest.raises(QueueFull):
            engine.submit(Asked([1, 9]).job)
        first.job.is_cancelled = True
        assert second.end()[1] == Finish("length", 3)
        first.end()


def test_engine_error_fails_only_running_answers(
    start: Started,
    loaded: load_model.LoadedModel,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A server that is up and never answers again."""
    engine = start(2, 4, replace(loaded, context_length=16_000))
    running = Asked([1, 9], 15_000)
    engine.submit(running.job)
    running.begun()

    def fail(self: ContinuousBatch, now: float) -> None:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(ContinuousBatch, "drop_finished", fail)
    assert running.end()[1] == Failure(500, INTERNAL_ERROR_MESSAGE)
    after = Asked([1, 9], 3)
    engine.submit(after.job)
    assert after.end()[1] == Finish("length", 3) and "no memory left" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["ActiveSequence", "_advance"])
def test_engine_error_during_admission_fails_admitted_requests(
    start: Started, loaded: load_model.LoadedModel, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A client that hangs because its job was in no list when memory ran out; one that is told twice; a place lost."""
    engine = start(2, 0, replace(loaded, context_length=16_000))
    running, coming = Asked([1, 9], 15_000), Asked([1, 8], 3)
    engine.submit(running.job)
    running.begun()
    real = getattr(batch_module, place)

    def fail(first: Any, *rest: Any) -> Any:
        if first is coming.job or (
            isinstance(first, list) and any(row.job is coming.job for row in first)
        ):
            raise MemoryError("no memory left")
        return real(first, *rest)

    monkeypatch.setattr(batch_module, place, fail)
    engine.submit(coming.job)
    assert coming.end() == ("", Failure(500, INTERNAL_ERROR_MESSAGE)) and running.end()[
        1
    ] == Failure(500, INTERNAL_ERROR_MESSAGE)
    after = [Asked([1, 7], 3), Asked([1, 6], 3)]
    for each in after:
        engine.submit(each.job)
    assert [each.end()[1] for each in after] == [Finish("length", 3)] * 2
    assert coming.quiet and running.quiet


def test_completed_request_is_not_failed_by_later_error(
    loaded: load_model.LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place given free twice, for a job that ended with the first id it was given and in whose company a fault came."""
    engine, short, longer = (
        Engine(loaded, max_sequences=2, max_queued=0),
        Asked([1, 9], 1),
        Asked([1, 8], 3),
    )

    def fail(*of: Any) -> Any:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(batch_module, "_select_unfinished", fail)
    for each in (short, longer):
        engine.submit(each.job)
    engine.start()  # both come in together
    assert short.end()[1] == Finish("length", 1) and longer.end()[1] == Failure(
        500, INTERNAL_ERROR_MESSAGE
    )
    engine.stop()
    engine.join()
    assert short.quiet and longer.quiet


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_overflow_fails_only_its_row(loaded: load_model.LoadedModel, sampling: Sampling) -> None:
    """Nonsense from logits that are no numbers, or one bad row that ends the others."""
    batch, well, ill = (
        ContinuousBatch(loaded),
        Asked([1, 9], 4, sampling),
        Asked([1, 8], 4, sampling),
    )
    batch.admit([well.job, ill.job])
    assert batch._inference_batch is not None
    batch._inference_batch.cache.values[:, 1] = torch.inf
    while batch.sequences:
        batch.decode_step()
    assert ill.end()[1] == Failure(500, OVERFLOW_MESSAGE) and well.end() == (
        alone(loaded, well.job),
        Finish("length", 4),
    )


def test_stop_notifies_all_requests(start: Started, loaded: load_model.LoadedModel) -> None:
    """Clients that hang when the server goes."""
    engine = start(1, 4, replace(loaded, context_length=16_000))
    asked = [Asked([1, 9], 15_000) for _ in range(3)]
    for each in asked:
        engine.submit(each.job)
    asked[0].begun()
    engine.stop()
    assert [each.end()[1] for each in asked] == [Failure(503, SHUTDOWN_MESSAGE)] * 3
    assert not engine.is_alive
