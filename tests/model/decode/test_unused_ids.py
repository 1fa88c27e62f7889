"""Ids that stand for no token, as in a padded vocabulary, are never generated."""

from typing import Any

import pytest
import torch

from model.decode.batch_generate import generate_batch
from model.decode.fast.model import FastModel
from model.decode.generate import generate
from model.decode.inference_model import CachedLlama
from model.decode.sampling import Sampling
from model.llama import Llama
from model.quantize import quantize_int8
from tests.helpers.random_llama import random_llama, random_prompts

# Between two tokens, and at the end of a vocabulary of 300.
UNUSED_IDS = (40, 41, *range(260, 300))
SAMPLINGS = {
    "greedy": Sampling(temperature=0.0),
    "penalized": Sampling(temperature=0.0, repetition_penalty=1.3, no_repeat_ngram=3),
    "drawn": Sampling(temperature=2.0),
    "top-k": Sampling(temperature=2.0, top_k=290),
    "top-p": Sampling(temperature=2.0, top_p=0.99),
}


def padded_llama(**changes: Any) -> Llama:
    """Return a model for which unused ids would mostly be the most likely ones."""
    model = random_llama(stop_weight=0.0, **changes)
    with torch.no_grad():
        model.lm_head.weight[list(UNUSED_IDS)] *= 4.0
    model.unused_ids = UNUSED_IDS
    return model


@pytest.fixture(params=[FastModel, CachedLlama], ids=["fast", "plain"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Llama:
    """A padded model, which decoding runs on the fast path or through `Llama`."""
    monkeypatch.setattr("model.decode.inference_model._build", request.param)
    return padded_llama()


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_single_answers_have_no_unused_ids(model: Llama, sampling: str, quantized: bool) -> None:
    """Prevents answers of ids that no tokenizer can turn into text, in chat and in samples."""
    if quantized:
        quantize_int8(model)
    for prompt in random_prompts([23, 1]):
        ids = list(generate(model, prompt, SAMPLINGS[sampling], max_new_tokens=20))
        assert len(ids) == 20 and set(ids).isdisjoint(UNUSED_IDS)


@pytest.mark.slow
@pytest.mark.parametrize("num_beams", [1, 4])
def test_batched_answers_have_no_unused_ids(model: Llama, num_beams: int) -> None:
    """Prevents the same in evaluation."""
    prompts = random_prompts([5, 23, 1])
    for answer in generate_batch(model, prompts, max_new_tokens=30, num_beams=num_beams):
        assert len(answer.ids) == 30 and set(answer.ids).isdisjoint(UNUSED_IDS)


def test_unused_ids_that_are_set_later_count_as_well() -> None:
    """Prevents a stored inference model that knows none of them."""
    model = padded_llama()
    model.unused_ids = ()
    [prompt] = random_prompts([5])
    greedy = SAMPLINGS["greedy"]
    assert not set(generate(model, prompt, greedy, max_new_tokens=9)).isdisjoint(UNUSED_IDS)
    model.unused_ids = UNUSED_IDS
    assert set(generate(model, prompt, greedy, max_new_tokens=9)).isdisjoint(UNUSED_IDS)
