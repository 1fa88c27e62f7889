"""Generation requests whose events a test can wait for, and the model that they run on."""

from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

from chat import load_model
from chat.serve.sequence import ActiveSequence, AnswerEvent, GenerationRequest, TextDelta
from model.decode.generate import generate
from model.decode.sampling import Sampling
from model.decode.scheduler import Scheduler
from model.tokenizer.base import Tokenizer

GREEDY = Sampling(temperature=0.0)
SAMPLED = Sampling(1.0, 40, 0.9, 1.2, 4)
NO_DEADLINE = 1e12


class TrackedRequest:
    """A generation request and the events that it emits."""

    def __init__(
        self,
        prompt: list[int],
        max_new_tokens: int = 30,
        sampling: Sampling = GREEDY,
        **options: Any,
    ) -> None:
        self._events: SimpleQueue[AnswerEvent] = SimpleQueue()
        values = {"seed": 0, "deadline": NO_DEADLINE, **options}
        self.request = GenerationRequest(
            prompt, max_new_tokens, sampling, emit=self._events.put, **values
        )

    def result(self) -> tuple[str, AnswerEvent]:
        """Wait for the last event; return it with the whole text before it."""
        text = ""
        while isinstance(event := self._events.get(timeout=60), TextDelta):
            text += event.text
        assert self.has_no_more_events, "an event came after the last one"
        return text, event

    @property
    def has_no_more_events(self) -> bool:
        return self._events.empty()

    def wait_for_text(self) -> None:
        assert isinstance(self._events.get(timeout=60), TextDelta)


@pytest.fixture(scope="module")
def loaded_model(endless: Path) -> load_model.LoadedModel:
    """A model that generates nonsense and ends only if it happens to sample `<eos>`."""
    full_context = load_model.load_chat_model(endless, torch.device("cpu"), "fp32")
    return replace(full_context, context_length=200)


def make_prompts(tokenizer: Tokenizer, count: int) -> list[list[int]]:
    """Return prompts of very different lengths."""
    text = "镇上的人都会划船，会做灯笼，也会讲故事。" * 9
    return [
        [tokenizer.bos_id, *tokenizer.encode(text[n : n + 3 + 17 * n % 90])] for n in range(count)
    ]


def generate_alone(loaded_model: load_model.LoadedModel, request: GenerationRequest) -> str:
    """Return what `generate` gives for the request, without a batch."""
    num_positions = loaded_model.context_length - len(request.prompt)
    ids = list(
        generate(
            loaded_model.model,
            request.prompt,
            request.sampling,
            max_new_tokens=min(request.max_new_tokens, num_positions),
            seed=request.seed,
        )
    )
    return loaded_model.tokenizer.decode(ids)


def new_sequence(loaded_model: load_model.LoadedModel, tracked: TrackedRequest) -> ActiveSequence:
    """Return the sequence that answers the request."""
    return ActiveSequence(
        tracked.request,
        loaded_model.tokenizer,
        loaded_model.context_length,
        loaded_model.model.config.stop_ids,
    )


def new_scheduler(
    loaded_model: load_model.LoadedModel, *tracked_requests: TrackedRequest
) -> Scheduler[ActiveSequence]:
    """Return a scheduler as the engine has it, with the requests waiting."""
    scheduler = Scheduler[ActiveSequence](loaded_model.model, max_rows=8, answers_at_once=True)
    for tracked in tracked_requests:
        scheduler.add(new_sequence(loaded_model, tracked))
    return scheduler


def run_batch(loaded_model: load_model.LoadedModel, *tracked_requests: TrackedRequest) -> None:
    """Answer the requests together."""
    scheduler = new_scheduler(loaded_model, *tracked_requests)
    while scheduler.has_work:
        scheduler.step()
