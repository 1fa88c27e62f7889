"""Scores of answers: packed rows, and keys and values in a narrower format."""

import numpy as np
import pytest
import torch

from data.batching.examples import Example
from evaluate.metrics.language_model import LMScore, score_each_example, score_examples
from tests.helpers.random_llama import random_llama


class RandomExamples:
    """Examples of random ids; the second half of each has a loss."""

    num_truncated = 0

    def lengths(self, epoch: int) -> np.ndarray:
        return np.array([9, 5, 14, 20, 3])

    def example(self, index: int, epoch: int) -> Example:
        size = int(self.lengths(epoch)[index])
        ids = np.random.default_rng(index).integers(3, 290, size + 1)
        return ids, np.arange(size) >= size // 2


def test_a_narrow_cache_rounds_keys_and_values_of_answers() -> None:
    """Prevents a loss that is stated for keys and values in bf16, and was computed in fp32."""
    model = random_llama()
    characters = np.ones(model.config.vocab_size, np.int64)

    def score() -> LMScore:
        return score_examples(model, RandomExamples(), 24, characters)

    wide = score()
    model.kv_cache_dtype = torch.bfloat16
    narrow = score()
    assert narrow.num_tokens == wide.num_tokens
    assert narrow.total_nats != pytest.approx(wide.total_nats, rel=1e-5)
    assert narrow.total_nats == pytest.approx(wide.total_nats, rel=1e-2)
    # Packed rows and single ones read the same numbers, but for those that round to the other side.
    alone = score_each_example(model, RandomExamples(), characters)
    assert sum(each.total_nats for each in alone) == pytest.approx(narrow.total_nats, rel=1e-4)
