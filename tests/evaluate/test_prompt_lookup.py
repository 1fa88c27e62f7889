"""Prompt lookup with a trained model that copies from its prompts."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluate.load_model import load_checkpoint
from evaluate.options import DeviceOptions
from model.chat_template.template import Template
from model.decode.generate import generate
from model.decode.prefix_cache import PrefixCache
from model.decode.sampling import Sampling
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import greedy_without_cache

MARKET = "渡口镇的集市在每月初三开市，卖山货、草药和竹器。"
BRIDGE = "镇上的桥是石匠方大同修的，一共用了两年零四个月。"


@pytest.mark.slow
def test_copied_answers_take_fewer_passes(
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents drafts that a model which copies does not accept, and answers changed by them."""
    lessons = [
        (Template().encode_prompt(tokenizer, [], question, MARKET + BRIDGE), answer)
        for question, answer in (("集市什么时候开？", MARKET), ("桥是谁修的？", BRIDGE))
    ]
    loaded = load_checkpoint(
        teach(lessons, tmp_path / "model"), DeviceOptions(), torch.device("cpu")
    )
    num_passes, original = 0, PrefixCache.extend

    def count(self: PrefixCache, ids: list[int]) -> torch.Tensor:
        nonlocal num_passes
        num_passes += 1
        return original(self, ids)

    monkeypatch.setattr(PrefixCache, "extend", count)
    for prompt, answer in lessons:
        num_passes = 0
        ids = list(generate(loaded.model, prompt, Sampling(temperature=0.0), max_new_tokens=60))
        assert tokenizer.decode(ids) == answer
        assert ids == greedy_without_cache(loaded.model, prompt, 60)
        assert num_passes < len(ids) / 2
