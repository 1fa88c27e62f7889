"""Models that are measured beyond the length of their training."""

import pytest
import torch

from evaluate.longer_context import allow_positions, warn_of_untrained_length
from model.decode.generate import generate
from model.decode.sampling import Sampling
from tests.helpers.random_llama import SHAPES, greedy_without_cache, random_llama


@pytest.mark.parametrize("shape", ["grouped-query", "linear rope", "llama3 rope"])
@torch.inference_mode()
def test_longer_texts_are_read_and_shorter_ones_as_before(shape: str) -> None:
    """Prevents angles that change with the length, and positions beyond a table of the old size."""
    model = random_llama(**SHAPES[shape])
    ids = torch.randint(3, 300, (1, 150), generator=torch.Generator().manual_seed(0))
    before = model(ids[:, :96])
    allow_positions(model, 160)
    after = model(ids)[:, :96]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    prompt = ids[0].tolist()
    answer = list(generate(model, prompt, Sampling(temperature=0.0), max_new_tokens=8))
    assert len(answer) > 0
    assert answer == greedy_without_cache(model, prompt, 8)


def test_untrained_lengths_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents figures of lengths that a model never saw, without a word about it."""
    model = random_llama()
    model.trained_context = 64
    warn_of_untrained_length(model, 64)
    assert capsys.readouterr().out == ""
    warn_of_untrained_length(model, 65)
    assert "trained on 64" in capsys.readouterr().out
    allow_positions(model, 32)
    assert model.config.max_position_embeddings == 96
