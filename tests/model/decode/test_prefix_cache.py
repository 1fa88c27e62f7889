"""Reuse of the KV cache by prompts that begin alike."""

from typing import Any

import pytest
import torch

from model.decode.fast.model import FastModel
from model.decode.generate import generate
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from tests.helpers.random_llama import random_llama

GREEDY = Sampling(temperature=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(repetition_penalty=1.1)], ids=str)
def test_reuse_does_not_change_answers(sampling: Sampling) -> None:
    """Prevents stale keys where a prompt continues, leaves, or shortens the last one."""
    model = random_llama()
    prefix_cache = PrefixCache(model, 64)
    first = [1, 17, 230, 5, 99]
    answer = list(generate(model, first, sampling, max_new_tokens=12, prefix_cache=prefix_cache))
    longer = [*first, *answer, 2, 44, 45, 46]
    prompts = [
        longer,
        [*first, *answer[:3], 2, 50, 51],
        first,
        first[:2],
        [1, 200, 201, 202],
        longer,
    ]
    for seed, prompt in enumerate(prompts):
        options: dict[str, Any] = {"max_new_tokens": 20, "seed": seed}
        expected = list(generate(model, prompt, sampling, **options))
        reused = generate(model, prompt, sampling, **options, prefix_cache=prefix_cache)
        assert list(reused) == expected


def test_only_new_ids_are_processed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a conversation that is processed from its start for every answer."""
    model = random_llama()
    prefix_cache, original = PrefixCache(model, 64), FastModel.prefill
    lengths: list[int] = []

    def count(self: FastModel, ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        lengths.append(ids.shape[1])
        return original(self, ids, *args, **kwargs)

    monkeypatch.setattr(FastModel, "prefill", count)
    prefix_cache.prefill(list(range(1, 31)))
    prefix_cache.prefill([*range(1, 31), 77, 78])
    prefix_cache.prefill([*range(1, 21), 79])
    prefix_cache.extend([80])
    prefix_cache.prefill([*range(1, 21), 79, 80, 81])
    assert lengths == [30, 2, 1, 1]


def test_an_interrupted_prefill_leaves_no_stale_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents positions that count as filled although Ctrl-C stopped the model before them."""
    model = random_llama()
    prefix_cache = PrefixCache(model, 64)
    prefix_cache.prefill(list(range(1, 31)))
    ids = [*range(1, 11), 80, 81]

    def interrupt(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FastModel, "prefill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prefix_cache.prefill(ids)
    torch.testing.assert_close(prefix_cache.prefill(ids), PrefixCache(model, 64).prefill(ids))
