"""Generation of a single sequence: the chosen ids, and when it ends."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from model.decode.generate import FinishReason, generate, max_prompt_tokens
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from model.llama import Llama
from tests.helpers.random_llama import random_llama, random_prompts

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def model() -> Llama:
    """A model whose answers may end with a stop id."""
    return random_llama(max_position_embeddings=64)


@pytest.fixture(scope="module")
def endless_model() -> Llama:
    """A model whose answers never end with a stop id."""
    return random_llama(max_position_embeddings=64, stop_weight=0.0)


def generate_all(
    model: Llama, prompt: list[int], sampling: Sampling = GREEDY, **options: Any
) -> tuple[list[int], FinishReason]:
    """Return the ids of an answer and why it ended."""
    ids: list[int] = []
    steps = generate(model, prompt, sampling, **options)
    while True:
        try:
            ids.append(next(steps))
        except StopIteration as stop:
            return ids, stop.value


@pytest.mark.slow
def test_greedy_ids_match_transformers(model: Llama) -> None:
    """Prevents an error in the cache or in positions that changes answers."""
    from transformers import AutoModelForCausalLM
    from transformers import LlamaConfig as TheirConfig

    theirs: Any = AutoModelForCausalLM.from_config(TheirConfig(**model.config.to_hf()))
    theirs.load_state_dict(model.state_dict())
    prompt = [1, 17, 230, 5, 99]
    output = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=40, do_sample=False, pad_token_id=0
    )
    expected = output[0, 5:].tolist()
    expected = expected[: expected.index(2)] if 2 in expected else expected
    assert len(expected) > 5
    assert list(generate(model, prompt, GREEDY, max_new_tokens=40)) == expected


def test_generation_stops_at_context_length(endless_model: Llama) -> None:
    """Prevents writes beyond the cache, and a full context that is reported as a full answer."""
    ids, reason = generate_all(endless_model, [1] * 60, max_new_tokens=100)
    assert len(ids) == 4 and reason == "context"
    ids, reason = generate_all(endless_model, [1] * 60, max_new_tokens=4)
    assert len(ids) == 4 and reason == "length"
    assert generate_all(endless_model, [1] * 64, max_new_tokens=4) == ([], "context")
    assert generate_all(endless_model, [1], max_new_tokens=0) == ([], "length")


def test_capacity_of_the_prefix_cache_replaces_the_context(endless_model: Llama) -> None:
    """Prevents positions that a model trained on shorter rows has never seen."""
    ids, reason = generate_all(
        endless_model, [1] * 10, max_new_tokens=50, prefix_cache=PrefixCache(endless_model, 24)
    )
    assert len(ids) == 14 and reason == "context"


def test_prompt_budget_reserves_answer_tokens() -> None:
    """Prevents prompts that leave no room for an answer, and answers that leave none for them."""
    assert max_prompt_tokens(256, 1000) == 192
    assert max_prompt_tokens(256, 10) == 246


@pytest.mark.parametrize("stop_id", [2, 7])
def test_generation_stops_at_stop_ids_without_yielding_them(stop_id: int) -> None:
    """Prevents an answer that continues behind its end, or that shows the stop id."""
    model = random_llama(more_stop_ids=(7,))
    with torch.no_grad():
        hidden = model.model(torch.tensor([[1, 30]]))[0, -1]
        model.lm_head.weight.zero_()
        model.lm_head.weight[stop_id] = hidden  # the most likely id after this prompt
    assert generate_all(model, [1, 30], max_new_tokens=10) == ([], "eos")


@pytest.mark.parametrize("sampling", [GREEDY, Sampling()], ids=["greedy", "sampled"])
def test_non_finite_output_raises(sampling: Sampling) -> None:
    """Prevents an overflow in fp16 that is decoded as if it were an answer."""
    model = random_llama()
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.inf)
    with pytest.raises(FloatingPointError, match="position 3"):
        next(generate(model, [1, 7, 8], sampling, max_new_tokens=10))


def test_sampling_is_reproducible_per_seed(model: Llama) -> None:
    """Prevents samples in the log that nobody can draw again."""
    answers = [
        list(generate(model, [1], Sampling(), max_new_tokens=20, seed=seed)) for seed in (1, 1, 2)
    ]
    assert answers[0] == answers[1] != answers[2]


@pytest.mark.slow
def test_penalties_match_transformers_on_answer_ids_only(endless_model: Llama) -> None:
    """Prevents penalties on the prompt: names in it could not be copied into the answer."""
    from transformers import (
        LogitsProcessorList,
        NoRepeatNGramLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
    )

    prompt = [1, 17, 230, 5, 99, 17, 230, 5]
    sampling = Sampling(temperature=0.0, repetition_penalty=1.3, no_repeat_ngram=3)
    processors = LogitsProcessorList(
        [NoRepeatNGramLogitsProcessor(3), RepetitionPenaltyLogitsProcessor(1.3)]
    )
    answer: list[int] = []
    with torch.no_grad():
        while len(answer) < 50:
            logits: Any = endless_model(torch.tensor([prompt + answer]))[:, -1]
            processed = processors(torch.tensor([answer], dtype=torch.int64), logits)
            answer.append(int(processed.argmax()))
    assert list(generate(endless_model, prompt, sampling, max_new_tokens=50)) == answer
    assert answer != list(generate(endless_model, prompt, GREEDY, max_new_tokens=50))


@pytest.mark.slow
def test_no_repeat_ngram_blocks_loops(endless_model: Llama) -> None:
    """Prevents a loop that goes on although repeated n-grams are forbidden."""
    looped = list(pairwise(generate(endless_model, [1, 40], GREEDY, max_new_tokens=60)))
    assert len(set(looped)) < len(looped), "without blocking this model repeats itself"
    blocked = Sampling(temperature=0.0, no_repeat_ngram=2)
    pairs = list(pairwise(generate(endless_model, [1, 40], blocked, max_new_tokens=60)))
    assert len(set(pairs)) == len(pairs)


@pytest.mark.slow
def test_penalties_ignore_the_prompt(endless_model: Llama) -> None:
    """Prevents an answer that cannot copy from its reference."""
    prompts = random_prompts([41] * 80)
    first_ids = [next(generate(endless_model, ids, GREEDY, max_new_tokens=1)) for ids in prompts]
    copying = [
        (prompt, first_id)
        for prompt, first_id in zip(prompts, first_ids, strict=True)
        if first_id in prompt
    ]
    assert len(copying) > 2
    severe = Sampling(temperature=0.0, repetition_penalty=1000.0, no_repeat_ngram=1)
    for prompt, first_id in copying:
        assert next(generate(endless_model, prompt, severe, max_new_tokens=1)) == first_id
