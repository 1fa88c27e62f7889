"""What is measured on held-out pairs."""

import numpy as np
import pytest
import torch

from evaluate.metrics.preference_scores import PairScore, count_longer_chosen
from train.dpo_eval import estimate_kl


def test_kl_estimate_is_close_to_the_divergence_of_similar_models() -> None:
    """Prevents an estimate that grows with the length, or is zero where changes cancel."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, generator=generator)
    other = logits + 0.1 * torch.randn(50, generator=generator)
    log_probs, other_log_probs = logits.log_softmax(0), other.log_softmax(0)
    exact = float((log_probs.exp() * (log_probs - other_log_probs)).sum())
    ids = torch.multinomial(log_probs.exp(), 40_000, replacement=True, generator=generator)
    own, reference = log_probs[ids].numpy(), other_log_probs[ids].numpy()
    scores, references = [
        [PairScore(0, values[:100], values[100:5000]), PairScore(1, values[5000:], values[:0])]
        for values in (own, reference)
    ]
    assert estimate_kl(scores, references) == pytest.approx(exact, rel=0.1)
    assert estimate_kl(scores, scores) == 0


def test_ties_are_not_won_by_the_longer_answer() -> None:
    """Prevents a baseline that gets pairs of equal length right."""
    lengths = np.array([[5, 3], [4, 4], [2, 6], [7, 1]])
    assert (count_longer_chosen(lengths).count, count_longer_chosen(lengths).total) == (2, 4)
