"""Answers made together are those made alone, and none is lost."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chat import load_model
from chat.serve import batch as batch_module
from chat.serve.batch import OVERFLOW, Batch
from chat.serve.engine import FAULT, STOPPING, WAITED, Busy, Engine
from chat.serve.sequence import Event, Failed, Job, Over, Row, Said, Text
from model.decode.fast.inference_model import decoder_of
from model.decode.generate import Sampling, generate
from model.tokenizer.base import Tokenizer

GREEDY, SAMPLED, FAR = Sampling(temperature=0.0), Sampling(1.0, 40, 0.9, 1.2, 4), 1e12


class Asked:
    """A job and what it was told."""

    def __init__(self, prompt: list[int], most: int = 30, sampling: Sampling = GREEDY, **options: Any) -> None:
        self._events: SimpleQueue[Event] = SimpleQueue()
        facts = {"seed": 0, "deadline": FAR, **options}
        self.job = Job(prompt, most, sampling, tell=self._events.put, **facts)

    def end(self) -> tuple[str, Event]:
        """The whole text, and the last event, waited for."""
        text = ""
        while isinstance(event := self._events.get(timeout=60), Said):
            text += event.text
        assert self._events.empty(), "something came after the end"
        return text, event

    @property
    def quiet(self) -> bool:
        """Whether nothing came after the end."""
        return self._events.empty()

    def begun(self) -> None:
        """Wait until something was said."""
        assert isinstance(self._events.get(timeout=60), Said)


@pytest.fixture(scope="module")
def loaded(endless: Path) -> load_model.Weights:
    """A model that speaks nonsense until it is stopped, with an `<eos>` that comes when it is drawn."""
    found = load_model.load(endless, torch.device("cpu"), "fp32")
    return replace(found, context=200)


def prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Prompts of very different lengths."""
    text = "镇上的人都会划船，会做灯笼，也会讲故事。" * 9
    return [[tokenizer.bos_id, *tokenizer.encode(text[n : n + 3 + 17 * n % 90])] for n in range(count)]


def alone(loaded: load_model.Weights, job: Job) -> str:
    """What the job's prompt gets from `generate`."""
    most = min(job.most, loaded.context - len(job.prompt))
    ids = list(generate(loaded.model, job.prompt, job.sampling, max_new_tokens=most, seed=job.seed))
    return loaded.tokenizer.decode(ids)


@pytest.mark.parametrize("samplings", [[GREEDY], [SAMPLED], [GREEDY, GREEDY, SAMPLED]], ids=["greedy", "sampled", "mixed"])
def test_answers_in_a_changing_batch_are_those_of_each_alone(loaded: load_model.Weights, samplings: list[Sampling]) -> None:
    """An answer that depends on who else is answered, or on when they came and went."""
    asked = [Asked(prompt, 5 + 11 * n % 40, samplings[n % len(samplings)], seed=n)
             for n, prompt in enumerate(prompts(loaded.tokenizer, 14))]
    batch, coming, together = Batch(loaded), list(asked), 0
    for step in range(200):
        if step % 3 == 0:
            batch.admit([coming.pop().job for _ in range(min(len(coming), 1 + step % 2, 6 - len(batch.rows)))])
        batch.step()
        together = max(together, len(batch.rows))
        if not coming and not batch.rows:
            break
    assert together == 6, "they were not answered together"
    for each in asked:
        text, over = each.end()
        assert text == alone(loaded, each.job) and isinstance(over, Over) and over.end in ("length", "eos")


def test_only_who_needs_the_logits_has_them_computed(endless: Path) -> None:
    """Two thirds of the work for nothing where all are greedy; a penalty passed over because the request is greedy."""
    loaded = load_model.load(endless, torch.device("cpu"), "fp32")
    head = decoder_of(loaded.model).head

    def text(**penalty: float) -> str:
        """What a row says beside one without penalties."""
        batch, asked = Batch(loaded), Asked([1, 9], 20, **penalty)
        batch.admit([Asked([1, 8], 5).job, asked.job])
        while batch.rows:
            batch.step()
        return asked.end()[0]

    plain = text()
    assert plain == alone(loaded, Asked([1, 9], 20).job) and head._columns is None and head._screen is not None
    assert len({plain, text(frequency_penalty=2.0), text(presence_penalty=-2.0)}) == 3 and head._columns is not None


def test_the_engine_answers_many_at_once(loaded: load_model.Weights) -> None:
    """Jobs that are lost, answered twice or never, where more come than there are rows."""
    engine = Engine(loaded, rows=3, waiting=20)
    engine.start()
    asked = [Asked(prompt, 12, seed=n) for n, prompt in enumerate(prompts(loaded.tokenizer, 20))]
    for each in asked:
        engine.submit(each.job)
    for each in asked:
        assert each.end() == (alone(loaded, each.job), Over("length", 12))
    assert engine.load == (0, 0)
    engine.stop()
    engine.join()


def test_an_answer_ends_with_the_context(loaded: load_model.Weights) -> None:
    """Positions that the model was never trained on."""
    batch, asked = Batch(loaded), Asked(prompts(loaded.tokenizer, 3)[2] * 4, 5000)
    batch.admit([asked.job])
    while batch.rows:
        batch.step()
    left = loaded.context - len(asked.job.prompt)
    assert asked.end() == (alone(loaded, asked.job), Over("context", left))


def test_an_answer_ends_with_any_of_several_stop_ids(loaded: load_model.Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Llama 3 that goes on behind <|end_of_text|>, because its turns end with <|eot_id|>."""
    prompt = prompts(loaded.tokenizer, 3)[2]
    said = list(generate(loaded.model, prompt, GREEDY, max_new_tokens=20))
    stop = said.index(said[7])
    stops = replace(loaded.model.config, more_stop_ids=(9999, said[stop]))
    monkeypatch.setattr(loaded.model, "config", stops)
    batch, asked = Batch(loaded), Asked(prompt, 20)
    batch.admit([asked.job])
    while batch.rows:
        batch.step()
    assert asked.end() == (loaded.tokenizer.decode(said[:stop]), Over("eos", stop))


def test_penalties_are_those_of_the_protocol(loaded: load_model.Weights) -> None:
    """A penalty on the prompt, of the wrong sign, or that forgets how often an id was said."""
    for logits, expected in (((2.0, 1.45, 0.8), 401), ((2.06, 1.45, 0.8), 5), ((2.0, 1.56, 0.8), 400)):
        asked = Asked([1, 401, 401], 9, frequency_penalty=0.5, presence_penalty=0.25)
        row = Row(asked.job, loaded.tokenizer, 10_000, 200, loaded.model.config.stop_ids)
        for index in (5, 5, 400):
            row.take(row.choose(torch.full((10_000,), -9.0).index_fill(0, torch.tensor(index), 9.0)))
        last = torch.full((10_000,), -9.0)
        last[[5, 400, 401]] = torch.tensor(logits)
        row.take(row.choose(last))
        assert row.said == [5, 5, 400, expected]


@given(st.text("甲乙丙a", max_size=30), st.lists(st.text("甲乙丙a", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_a_stop_string(tokenizer: Tokenizer, text: str, stops: list[str]) -> None:
    """A stop string that is seen by the client, or text held back for good that was none."""
    ids = [index for byte in text for index in tokenizer.encode(byte)]
    shown, stream = "", Text(tokenizer, stops)
    for index in ids:
        shown += stream.add(index)
        if stream.stopped:
            break
    else:
        shown += stream.close()
    places = [text.find(stop) for stop in stops if stop in text]
    # The answer is cut where the first stop string is complete, at the earliest place that one begins.
    complete = min((text.find(stop) + len(stop) for stop in stops if stop in text), default=len(text))
    seen = text[:complete]
    assert stream.stopped == bool(places)
    assert shown == (seen[: min(seen.find(stop) for stop in stops if stop in seen)] if places else text)


def test_a_stop_string_ends_the_answer(loaded: load_model.Weights) -> None:
    """An answer that goes on in the batch after its stop string."""
    asked = Asked(prompts(loaded.tokenizer, 2)[1], 40)
    whole = alone(loaded, asked.job)
    stop = whole[12:15]
    asked.job.stops = ["不会有的", stop]
    batch = Batch(loaded)
    batch.admit([asked.job])
    while batch.rows:
        batch.step()
    text, over = asked.end()
    assert text == whole[: whole.index(stop)] and isinstance(over, Over) and over.end == "stop" and over.tokens < 40


Started = Callable[..., Engine]


@pytest.fixture
def start(loaded: load_model.Weights) -> Iterator[Started]:
    """Engines that are stopped after the test."""
    engines: list[Engine] = []

    def begin(rows: int, waiting: int, model: load_model.Weights = loaded) -> Engine:
        engines.append(Engine(model, rows=rows, waiting=waiting))
        engines[-1].start()
        return engines[-1]

    yield begin
    for engine in engines:
        engine.stop()
        engine.join()


def test_who_left_and_whose_time_is_up_gives_the_row_free(start: Started, loaded: load_model.Weights) -> None:
    """A row that is computed for nobody, a client that waits for ever."""
    engine = start(1, 4, replace(loaded, context=16_000))
    leaver, late = Asked([1, 9], 15_000), Asked([1, 8], 15_000)
    vain, next_one = Asked([1, 7], 5, deadline=0.0), Asked([1, 6], 5)
    engine.submit(leaver.job)
    leaver.begun()
    engine.submit(vain.job)
    assert vain.end() == ("", Failed(503, WAITED)), "it waits for a row although its time is up"
    engine.submit(late.job)
    leaver.job.gone = True
    _, over = leaver.end()
    assert isinstance(over, Over) and over.end == "gone" and over.tokens < 15_000
    late.begun()
    engine.submit(next_one.job)
    late.job.deadline = time.monotonic()
    _, over = late.end()
    assert isinstance(over, Over) and over.end == "timeout"
    assert next_one.end()[1] == Over("length", 5)


def test_a_full_house_takes_nobody_in(start: Started, loaded: load_model.Weights) -> None:
    """A queue without an end, or one whose places are never given free."""
    engine = start(1, 1, replace(loaded, context=16_000))
    for _ in range(2):
        first, second = Asked([1, 9], 15_000), Asked([1, 9], 3)
        engine.submit(first.job)
        engine.submit(second.job)
        with pytest.raises(Busy):
            engine.submit(Asked([1, 9]).job)
        first.job.gone = True
        assert second.end()[1] == Over("length", 3)
        first.end()


def test_a_fault_costs_the_running_answers_only(
    start: Started, loaded: load_model.Weights, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that is up and never answers again."""
    engine = start(2, 4, replace(loaded, context=16_000))
    running = Asked([1, 9], 15_000)
    engine.submit(running.job)
    running.begun()

    def fail(self: Batch, now: float) -> None:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(Batch, "release", fail)
    assert running.end()[1] == Failed(500, FAULT)
    after = Asked([1, 9], 3)
    engine.submit(after.job)
    assert after.end()[1] == Over("length", 3) and "no memory left" in capfd.readouterr().err


@pytest.mark.parametrize("place", ["Row", "_advance"])
def test_a_fault_at_the_door_tells_those_who_were_coming_in(
    start: Started, loaded: load_model.Weights, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A client that hangs because its job was in no list when memory ran out; one that is told twice; a place lost."""
    engine = start(2, 0, replace(loaded, context=16_000))
    running, coming = Asked([1, 9], 15_000), Asked([1, 8], 3)
    engine.submit(running.job)
    running.begun()
    real = getattr(batch_module, place)

    def fail(first: Any, *rest: Any) -> Any:
        if first is coming.job or (isinstance(first, list) and any(row.job is coming.job for row in first)):
            raise MemoryError("no memory left")
        return real(first, *rest)

    monkeypatch.setattr(batch_module, place, fail)
    engine.submit(coming.job)
    assert coming.end() == ("", Failed(500, FAULT)) and running.end()[1] == Failed(500, FAULT)
    after = [Asked([1, 7], 3), Asked([1, 6], 3)]
    for each in after:
        engine.submit(each.job)
    assert [each.end()[1] for each in after] == [Over("length", 3)] * 2
    assert coming.quiet and running.quiet


def test_whose_answer_is_whole_is_not_told_of_a_fault(loaded: load_model.Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place given free twice, for a job that ended with the first id it was given and in whose company a fault came."""
    engine, short, longer = Engine(loaded, rows=2, waiting=0), Asked([1, 9], 1), Asked([1, 8], 3)

    def fail(*of: Any) -> Any:
        monkeypatch.undo()
        raise MemoryError("no memory left")

    monkeypatch.setattr(batch_module, "_alive", fail)
    for each in (short, longer):
        engine.submit(each.job)
    engine.start()  # both come in together
    assert short.end()[1] == Over("length", 1) and longer.end()[1] == Failed(500, FAULT)
    engine.stop()
    engine.join()
    assert short.quiet and longer.quiet


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@torch.inference_mode()
def test_an_overflow_fails_the_row_it_is_in(loaded: load_model.Weights, sampling: Sampling) -> None:
    """Nonsense from logits that are no numbers, or one bad row that ends the others."""
    batch, well, ill = Batch(loaded), Asked([1, 9], 4, sampling), Asked([1, 8], 4, sampling)
    batch.admit([well.job, ill.job])
    assert batch._reader is not None
    batch._reader.cache.values[:, 1] = torch.inf
    while batch.rows:
        batch.step()
    assert ill.end()[1] == Failed(500, OVERFLOW) and well.end() == (alone(loaded, well.job), Over("length", 4))


def test_stopping_tells_everybody(start: Started, loaded: load_model.Weights) -> None:
    """Clients that hang when the server goes."""
    engine = start(1, 4, replace(loaded, context=16_000))
    asked = [Asked([1, 9], 15_000) for _ in range(3)]
    for each in asked:
        engine.submit(each.job)
    asked[0].begun()
    engine.stop()
    assert [each.end()[1] for each in asked] == [Failed(503, STOPPING)] * 3
    assert not engine.alive
