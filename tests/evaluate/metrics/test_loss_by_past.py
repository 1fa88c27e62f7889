"""Losses of the same tokens with more and more of the text before them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from evaluate.metrics import loss_by_past
from evaluate.metrics.loss_by_past import cut_windows, mean_by_document, score_by_past
from tests.helpers.random_llama import random_llama


@torch.inference_mode()
def test_losses_are_those_of_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents other targets with each past, a past that is off by one, and mixed up windows."""
    monkeypatch.setattr(loss_by_past, "_BATCH_TOKENS", 100)  # two windows at once, then one
    model = random_llama()
    windows = np.random.default_rng(0).integers(300, size=(3, 45))
    seen: list[int] = []
    by_past, by_position = score_by_past(model, windows, (1, 8, 40), 5, on_progress=seen.append)
    assert by_past.shape == (3, 3) and by_position.shape == (3, 44)
    for row, window in enumerate(torch.from_numpy(windows)):
        for column, past in enumerate((1, 8, 40)):
            logits = model(window[None, 40 - past : -1])[0, past - 1 :]
            expected = float(F.cross_entropy(logits, window[40:]))
            assert by_past[row, column] == pytest.approx(expected, rel=1e-4)
        losses = F.cross_entropy(model(window[None, :-1])[0], window[1:], reduction="none")
        assert by_position[row] == pytest.approx(losses.numpy(), rel=1e-3, abs=1e-4)
    assert sum(seen) == 3 * (45 + 6 + 13)


def test_losses_are_those_with_a_narrow_cache() -> None:
    """Prevents a stated cost of a cache in bf16 that was measured without one."""
    model = random_llama()
    windows = np.random.default_rng(0).integers(300, size=(2, 45))
    wide, _ = score_by_past(model, windows, (8, 40), 5)
    model.kv_cache_dtype = torch.bfloat16
    narrow, _ = score_by_past(model, windows, (8, 40), 5)
    assert 0 < np.abs(narrow - wide).max() < 0.02


def test_every_document_gives_a_window_before_one_gives_two() -> None:
    """Prevents windows of the longest document alone, and windows that overlap."""
    documents = [np.arange(0, 100), np.arange(1000, 1009), np.arange(2000, 2025)]
    windows = cut_windows(documents, 10, 6, seed=3)
    assert windows.ids.shape == (6, 10)
    assert windows.documents.tolist() == [0, 2, 0, 2, 0, 0]
    assert all((np.diff(ids) == 1).all() for ids in windows.ids)
    assert len(np.unique(windows.ids)) == 60
    again = cut_windows(documents, 10, 6, seed=3)
    assert (again.ids == windows.ids).all()
    assert not np.array_equal(cut_windows(documents, 10, 6, seed=4).ids, windows.ids)
    assert cut_windows(documents, 101, 6, seed=3).ids.shape == (0, 101)


def test_windows_of_a_document_count_once() -> None:
    """Prevents intervals over windows, which are too narrow where documents have many."""
    values = np.array([[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]])
    means = mean_by_document(values, np.array([7, 2, 7]))
    assert means.tolist() == [[5.0, 6.0], [2.0, 3.0]]
