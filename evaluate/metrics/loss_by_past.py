"""The loss of the same tokens with more and more of the text before them, and by position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluate.metrics.language_model import read_text
from model.llama import Llama
from model.loss import score_tokens

# Positions of a forward pass.
_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Windows:
    """Windows of long documents, and the document that each is from."""

    ids: np.ndarray
    """int64[N, longest past + targets]"""
    documents: np.ndarray
    """int64[N]"""


def cut_windows(
    documents: Sequence[np.ndarray], length: int, max_windows: int, seed: int
) -> Windows:
    """Cut windows of `length` ids from documents, int64[n] each; shorter ones are left out.

    A document gives its first window at a random place, then others that do not overlap. All give
    one before any gives two.
    """
    rng = np.random.default_rng(seed)
    by_round: dict[int, list[tuple[int, np.ndarray]]] = {}
    for number, ids in enumerate(documents):
        num_places = len(ids) // length
        offset = int(rng.integers(len(ids) - num_places * length + 1)) if num_places else 0
        for turn, place in enumerate(rng.permutation(num_places)):
            start = offset + int(place) * length
            by_round.setdefault(turn, []).append((number, ids[start : start + length]))
    windows = [window for turn in sorted(by_round) for window in by_round[turn]][:max_windows]
    return Windows(
        np.array([ids for _, ids in windows], np.int64).reshape(-1, length),
        np.array([number for number, _ in windows], np.int64),
    )


def score_by_past(
    model: Llama,
    windows: np.ndarray,
    pasts: Sequence[int],
    num_targets: int,
    *,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Score the last `num_targets` ids of windows with each of some pasts, and all by position.

    Args:
        model: the model to measure.
        windows: int64[N, max(pasts) + num_targets].
        pasts: numbers of ids before the first target that the model sees, ascending.
        num_targets: ids that are scored; the last one has so many more of them before it.
        on_progress: called after each batch with the number of ids that were processed in it.

    Returns the mean losses of the targets in nats, float64[N, pasts], and the loss at each position
    with the longest past, float64[N, T] for the second id of a window to its last.
    """
    by_position = _score(model, windows, windows.shape[1] - 1, on_progress)
    by_past = [
        _score(model, windows[:, -past - num_targets :], num_targets, on_progress).mean(1)
        for past in pasts[:-1]
    ]
    # The longest past is the whole window.
    by_past.append(by_position[:, -num_targets:].mean(1))
    return np.stack(by_past, axis=1), by_position


@torch.inference_mode()
def _score(
    model: Llama,
    windows: np.ndarray,
    num_targets: int,
    on_progress: Callable[[int], object] | None,
) -> np.ndarray:
    """Return the losses of the last `num_targets` ids of windows[N, T], float64[N, num_targets]."""
    device = model.lm_head.weight.device
    num_rows = max(_BATCH_TOKENS // windows.shape[1], 1)
    scores = []
    for start in range(0, len(windows), num_rows):
        ids = torch.from_numpy(windows[start : start + num_rows]).to(device)
        # Whole windows: positions count up, and attention is causal.
        hidden = read_text(model, ids[:, :-1])[:, -num_targets:]
        targets = ids[:, -num_targets:].flatten()
        losses, _ = score_tokens(hidden.flatten(0, 1), model.lm_head.weight, targets)
        scores.append(losses.double().view(len(ids), num_targets).cpu().numpy())
        if on_progress:
            on_progress(ids.numel())
    return np.concatenate(scores)


def mean_by_document(values: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the means of values[N, …] over the windows of each document, [documents, …].

    `documents`[N] is the document of each window.
    """
    return np.stack([values[documents == number].mean(0) for number in np.unique(documents)])
