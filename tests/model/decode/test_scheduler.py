"""Answers that wait, run and end at different times."""

import pytest
import torch

from model.decode.batch_generate import generate_batch
from model.decode.fast.model import FastModel
from model.decode.sampling import Sampling
from model.decode.scheduler import ScheduledAnswer, Scheduler
from model.llama import Llama
from tests.helpers.random_llama import random_llama, random_prompts

GREEDY = Sampling(temperature=0.0)


def make_answer(
    model: Llama, prompt: list[int], limit: int, sampling: Sampling = GREEDY, seed: int = 0
) -> ScheduledAnswer:
    stop_ids = model.config.stop_ids
    return ScheduledAnswer(prompt, limit=limit, stop_ids=stop_ids, sampling=sampling, seed=seed)


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record how many prompts each prefill processes."""
    counts: list[int] = []
    prefill = FastModel.prefill

    def count(self: FastModel, ids: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        counts.append(len(ids))
        return prefill(self, ids, *args)

    monkeypatch.setattr(FastModel, "prefill", count)
    return counts


def test_waiting_answers_take_the_places_of_ended_ones(prefilled: list[int]) -> None:
    """Prevents one long answer that holds up those after it, and prompts processed one by one."""
    model = random_llama(stop_weight=0.0)
    prompts = random_prompts([3 + n for n in range(41)])
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=16)
    # The first one is long, the others are short.
    answers = [make_answer(model, prompt, 5 + n % 3) for n, prompt in enumerate(prompts)]
    answers[0].limit = 50
    for answer in answers:
        scheduler.add(answer)
    ended: list[ScheduledAnswer] = []
    most_rows = num_steps = 0
    while scheduler.has_work:
        ended += scheduler.step()
        most_rows, num_steps = max(most_rows, len(scheduler.running)), num_steps + 1
    assert len(ended) == 41 and set(ended) == set(answers) and ended[-1] is answers[0]
    # The first id of an answer is that of the step that processes its prompt.
    assert most_rows == 16 and num_steps == 49
    assert sum(prefilled) == 41 and prefilled[0] == 16 and min(prefilled[:-1]) > 1
    for answer in answers:
        (expected,) = generate_batch(model, [list(answer.prompt)], max_new_tokens=answer.limit)
        assert answer.ids == expected.ids


def test_a_lone_newcomer_does_not_wait_for_others(prefilled: list[int]) -> None:
    """Prevents a request that waits for a second one while places are free."""
    model = random_llama(stop_weight=0.0)
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=64)
    for prompt in random_prompts([5, 9, 2]):
        answer = make_answer(model, prompt, 20)
        scheduler.add(answer)
        scheduler.step()
        assert answer.ids
    assert prefilled == [1, 1, 1]


def test_a_server_leaves_no_place_free_while_requests_wait() -> None:
    """Prevents a request that waits for the end of another answer, beside a free place."""
    model = random_llama(stop_weight=0.0)
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=16, answers_at_once=True)
    answers = [make_answer(model, prompt, 20) for prompt in random_prompts([3] * 17)]
    for answer in answers[:15]:
        scheduler.add(answer)
    scheduler.step()
    for answer in answers[15:]:
        scheduler.add(answer)
    scheduler.step()
    assert answers[15].ids and not answers[16].ids


def test_answers_to_one_prompt_share_its_prefill(prefilled: list[int]) -> None:
    """Prevents a prompt that is processed for each answer, and one that is taken for another."""
    model = random_llama(stop_weight=0.0)
    prompts = random_prompts([20, 30, 7])
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=4)
    answers = [
        make_answer(model, prompt, 4 + number % 3, Sampling(), seed=number)
        for prompt in prompts
        for number in range(6)
    ]
    for answer in answers:
        scheduler.add(answer)
    while scheduler.has_work:
        scheduler.step()
    assert sum(prefilled) == 3
    for answer in answers:
        alone = make_answer(model, list(answer.prompt), answer.limit, Sampling())
        alone._generator.manual_seed(answers.index(answer) % 6)
        scheduler.add(alone)
        while scheduler.has_work:
            scheduler.step()
        assert alone.ids == answer.ids
    assert len({tuple(answer.ids) for answer in answers}) > 15


def test_finished_answers_release_the_batch() -> None:
    """Prevents a server that keeps the memory of its largest request while nothing runs."""
    model = random_llama(stop_weight=0.0)
    scheduler = Scheduler[ScheduledAnswer](model, max_rows=4)
    scheduler.add(make_answer(model, [1, 5], 3))
    while scheduler.has_work:
        scheduler.step()
    assert scheduler._batch is None and not scheduler._prompt_ends
