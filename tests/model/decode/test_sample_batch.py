"""Sampled answers of batches are those that `generate` draws with the same seeds."""

import pytest
import torch

from model.decode.batch_generate import DecodedAnswer, generate_batch
from model.decode.generate import generate
from model.decode.sample_batch import derive_seed, sample_batch
from model.decode.sampling import DEFAULT_SAMPLING, Sampling
from model.llama import Llama
from tests.helpers.random_llama import SHAPES, random_llama
from tests.model.decode.test_batch_generate import random_prompts

SAMPLINGS = {
    "plain": Sampling(),
    "chat": DEFAULT_SAMPLING,
    "top-k": Sampling(temperature=0.8, top_k=5),
    "greedy": Sampling(temperature=0.0),
}


def answer_alone(
    model: Llama, prompt: list[int], seed: int, sampling: Sampling, max_new_tokens: int
) -> DecodedAnswer:
    """Return the answer of `generate`."""
    stream = generate(model, prompt, sampling, max_new_tokens=max_new_tokens, seed=seed)
    ids = []
    while True:
        try:
            ids.append(next(stream))
        except StopIteration as end:
            return DecodedAnswer(ids, end.value == "eos")


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("shape", ["grouped-query", "several stop ids"])
def test_answers_are_those_of_each_prompt_alone(shape: str, name: str) -> None:
    """Prevents answers that depend on their batch: a resumed run would get other samples."""
    model = random_llama(stop_weight=3.0, **SHAPES[shape])
    prompts = random_prompts(5)
    seeds = [[derive_seed(7, index, number) for number in range(index)] for index in range(5)]
    progress: list[int] = []
    expected = [
        [answer_alone(model, prompt, seed, SAMPLINGS[name], 24) for seed in prompt_seeds]
        for prompt, prompt_seeds in zip(prompts, seeds, strict=True)
    ]
    lengths = {len(answer.ids) for group in expected for answer in group}
    for batch_size in (1, 3, 64):
        answers = sample_batch(
            model,
            prompts,
            seeds,
            SAMPLINGS[name],
            max_new_tokens=24,
            batch_size=batch_size,
            on_progress=progress.append,
        )
        assert answers == expected
    assert sum(progress) == 3 * 10
    # Otherwise no row would leave a batch before the others.
    assert len(lengths) > 1


def test_stop_id_is_the_one_that_was_drawn() -> None:
    """Prevents a model with several that learns from one that it did not write."""
    model = random_llama(stop_weight=3.0, **SHAPES["several stop ids"])
    (answers,) = sample_batch(model, [[5, 6]], [range(60)], Sampling(), max_new_tokens=24)
    stop_ids = {answer.stop_id for answer in answers if answer.reached_stop_id}
    assert stop_ids == set(model.config.stop_ids)
    assert all((answer.stop_id is None) == (not answer.reached_stop_id) for answer in answers)


def test_samples_differ_and_greedy_ones_do_not() -> None:
    """Prevents rows that share a generator, so that all samples of a prompt are the same."""
    model = random_llama(stop_weight=0.0)
    prompts = random_prompts(2)
    seeds = [list(range(6))] * 2
    drawn = sample_batch(model, prompts, seeds, Sampling(), max_new_tokens=8)
    assert all(len({tuple(answer.ids) for answer in group}) == 6 for group in drawn)
    greedy = sample_batch(model, prompts, seeds, Sampling(temperature=0.0), max_new_tokens=8)
    expected = generate_batch(model, prompts, max_new_tokens=8)
    assert greedy == [[answer] * 6 for answer in expected]


def test_answers_end_with_the_context() -> None:
    """Prevents positions that the model has no rotary angles for."""
    model = random_llama(stop_weight=0.0)
    prompts = [[1] * 96, [1] * 95, [1] * 20]
    answers = sample_batch(model, prompts, [[1, 2]] * 3, Sampling(), max_new_tokens=90)
    assert [[len(answer.ids) for answer in group] for group in answers] == [
        [0, 0],
        [1, 1],
        [76, 76],
    ]
    assert not any(answer.reached_stop_id for group in answers for answer in group)
    with pytest.raises(ValueError, match="prompt 1 has 97 ids"):
        sample_batch(model, [[1], [1] * 97], [[1], [1]], Sampling(), max_new_tokens=2)


def test_overflow_is_an_error() -> None:
    """Prevents samples of NaN, which PyTorch draws as the first id or ends with a crash."""
    model = random_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="position 3 is not finite"):
        sample_batch(model, [[1, 5, 6]], [[1]], Sampling(), max_new_tokens=2)


def test_seeds_follow_from_all_parts() -> None:
    """Prevents two samples of a run with one seed, and seeds that change between processes."""
    seeds = {
        derive_seed(seed, step, row) for seed in (0, 1) for step in (0, 1, 12) for row in (0, 1)
    }
    assert len(seeds) == 12 and derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed(0, "问") == derive_seed(0, "问") and min(seeds) >= 0 and max(seeds) < 2**63
    # A run that is resumed with a later version has the same samples.
    assert derive_seed(1, 2, 3) == 733464669408481064


def test_samples_keep_to_the_words_of_their_own_prompt() -> None:
    """Prevents a penalty that spares the ids of another prompt, or lets no answer end."""
    model = random_llama(stop_weight=3.0)
    prompts = [[1, 5, 6, 7], [1, 40, 41]]
    answers = sample_batch(
        model, prompts, [range(8)] * 2, Sampling(), max_new_tokens=24, novelty_penalty=1e4
    )
    for prompt, group in zip(prompts, answers, strict=True):
        assert {token_id for answer in group for token_id in answer.ids} == set(prompt)
        assert any(answer.reached_stop_id for answer in group)
