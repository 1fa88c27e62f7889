"""Log-likelihoods of continuations, against the logits of single forward passes."""

import random

import pytest
import torch

from evaluate.metrics.continuations import Continuations, _group_by_prefix, score_continuations
from model.llama import Llama
from tests.helpers.random_llama import SHAPES, random_llama


def _score_alone(model: Llama, prompt: list[int], option: list[int]) -> float:
    """Return the log-probability of an option by a forward pass of nothing else."""
    logits = model(torch.tensor([prompt + option]))[0, len(prompt) - 1 : -1].double()
    chosen = logits.log_softmax(-1)[torch.arange(len(option)), torch.tensor(option)]
    return float(chosen.sum())


def _requests(vocab_size: int) -> list[Continuations]:
    """Requests with a long prefix in common, with a short one and none; options of 1 to 5 ids."""
    rng = random.Random(4)

    def ids(count: int) -> list[int]:
        return [rng.randrange(vocab_size) for _ in range(count)]

    solved_examples = [ids(30), ids(24)]
    requests = []
    for _ in range(8):
        for prefix in (*solved_examples, []):
            options = [ids(rng.randint(1, 5)) for _ in range(rng.randint(1, 4))]
            requests.append(Continuations(prefix + ids(rng.randint(1, 9)), options))
    requests.append(requests[0])
    return requests


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_scores_are_those_of_each_option_alone(shape: str) -> None:
    """Options that see each other, wrong positions, padding or prefixes of another group."""
    model = random_llama(**SHAPES[shape])
    requests = _requests(model.config.vocab_size)
    assert len(_group_by_prefix([request.prompt for request in requests])) == 3
    scores = score_continuations(model, requests, batch_tokens=100)
    for request, option_scores in zip(requests, scores, strict=True):
        expected = [_score_alone(model, request.prompt, option) for option in request.options]
        assert option_scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@torch.inference_mode()
def test_a_narrow_cache_rounds_the_same_in_every_group() -> None:
    """A score that depends on whether another question has the same beginning."""
    model = random_llama()
    first, second, *_ = (request for request in _requests(300) if len(request.prompt) > 30)
    wide = score_continuations(model, [first])[0]
    model.kv_cache_dtype = torch.bfloat16
    alone = score_continuations(model, [first])[0]
    shared = Continuations([*first.prompt[:-1], 299], [[5]])
    beside = score_continuations(model, [first, shared, second])[0]
    assert beside == pytest.approx(alone, rel=1e-5)
    assert alone != pytest.approx(wide, rel=1e-5)


def test_prefixes_are_shared_where_it_saves_most() -> None:
    """A short common beginning that takes the place of a long one, and a prompt without a rest."""
    long_a, long_b = list(range(10, 110)), list(range(200, 300))
    prompts = [[1, *long_a, 5], [1, *long_b, 6], [1, 2], [1, *long_a, 7], [1, *long_b, 8]]
    groups = {tuple(sorted(group)): shared for group, shared in _group_by_prefix(prompts)}
    assert groups == {(0, 3): 101, (1, 4): 101, (2,): 0}
    # Equal prompts: the last id is processed in each row.
    assert _group_by_prefix([long_a, long_a]) == [([0, 1], 99)]


def test_a_request_longer_than_the_context_is_refused() -> None:
    """Positions behind the rotary table, whose error would name neither prompt nor option."""
    model = random_llama()
    context = model.config.max_position_embeddings
    fitting = Continuations([1] * (context - 1), [[2, 3], [4]])
    assert len(score_continuations(model, [fitting])[0]) == 2
    with pytest.raises(ValueError, match="request 0 has"):
        score_continuations(model, [Continuations([1] * context, [[2, 3], [4]])])
