"""Log-likelihoods in a tree after one long text, against single forward passes."""

import random

import pytest
import torch

from evaluate.metrics import continuation_tree
from evaluate.metrics.continuation_tree import _Tree, score_after_text
from evaluate.metrics.continuations import Continuations
from model.llama import Llama
from tests.helpers.random_llama import SHAPES, random_llama


def _score_alone(model: Llama, prompt: list[int], option: list[int]) -> float:
    """Return the log-probability of an option by a forward pass of nothing else."""
    logits = model(torch.tensor([prompt + option]))[0, len(prompt) - 1 : -1].double()
    chosen = logits.log_softmax(-1)[torch.arange(len(option)), torch.tensor(option)]
    return float(chosen.sum())


def _requests() -> list[Continuations]:
    """Prompts with a text in common; options of 1 to 4 ids, many with equal beginnings."""
    rng = random.Random(4)
    text = [rng.randrange(300) for _ in range(40)]
    requests = []
    for rest in (1, 6, 3):
        prompt = text + [rng.randrange(300) for _ in range(rest)]
        options = [[rng.choice((5, 6, 7)) for _ in range(rng.randint(1, 4))] for _ in range(25)]
        requests.append(Continuations(prompt, options))
    return requests


@pytest.mark.parametrize("max_nodes", [4, 512])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_scores_are_those_of_each_option_alone(
    shape: str, max_nodes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that see their neighbors, wrong positions, ids of the request before in the cache."""
    monkeypatch.setattr(continuation_tree, "_MAX_NODES", max_nodes)
    model = random_llama(**SHAPES[shape])
    requests = _requests()
    for request, scores in zip(requests, score_after_text(model, requests), strict=True):
        expected = [_score_alone(model, request.prompt, option) for option in request.options]
        assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@torch.inference_mode()
def test_prompts_without_anything_in_common_are_scored() -> None:
    """A cache without a text, and a single request that has no other to share with."""
    model = random_llama()
    requests = [Continuations([1], [[2], [3, 4]]), Continuations([9, 8], [[2]])]
    for batch in (requests, requests[1:]):
        for request, scores in zip(batch, score_after_text(model, batch), strict=True):
            expected = [_score_alone(model, request.prompt, option) for option in request.options]
            assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_equal_beginnings_are_processed_once() -> None:
    """A tree with as many nodes as all options together, which takes the time of all of them."""
    tree = _Tree()
    for number in range(1000):
        tree.add([int(digit) for digit in f"{number:03}"])
    assert len(tree.ids) == 10 + 100
    assert tree.ancestors().sum() == 10 + 2 * 100
