"""Log-probabilities of the two answers of preferences."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

from data.batching.packed_rows import PACKING_WINDOW, pack_best_fit
from data.batching.preference_rows import PreferenceExamples, collate_preferences
from evaluate.metrics.proportion import Proportion
from model.llama import Llama


class PairScore(NamedTuple):
    """Log-probabilities in nats of the ids of both answers of pair `pair`, fp32[c] and fp32[r]."""

    pair: int
    chosen: np.ndarray
    rejected: np.ndarray


@torch.no_grad()
def score_pairs(
    model: Llama,
    examples: PreferenceExamples,
    row_length: int,
    *,
    rows: int,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Iterator[PairScore]:
    """Score the first `limit` pairs that fit a row (None: all), in the order of packed rows.

    A batch has `rows` rows of `row_length` positions. `on_progress` is called after each batch with
    the number of pairs in it.
    """
    device = model.lm_head.weight.device
    lengths = examples.lengths(epoch=0)
    # A pair that does not fit a row has length 0.
    fitting = np.flatnonzero(lengths)[:limit]
    for start in range(0, len(fitting), PACKING_WINDOW):
        window = fitting[start : start + PACKING_WINDOW]
        packed_rows = pack_best_fit(lengths[window], row_length)
        for first in range(0, len(packed_rows), rows):
            row_pairs = [
                [examples.example(int(window[index]), epoch=0) for index in row]
                for row in packed_rows[first : first + rows]
            ]
            batch = collate_preferences(row_pairs, row_length).to(device)
            log_probs = model(
                batch.ids,
                batch.targets,
                target_positions=batch.loss_indices,
                per_target=True,
                positions=batch.positions,
                mask=batch.segments,
            )
            answers = iter(log_probs.cpu().split(batch.answer_lengths.flatten().tolist()))
            for pair in batch.pairs.tolist():
                yield PairScore(pair, next(answers).numpy(), next(answers).numpy())
            if on_progress:
                on_progress(len(batch.pairs))


def count_longer_chosen(lengths: np.ndarray) -> Proportion:
    """Return of how many pairs, lengths[n, 2], the chosen answer is the longer one.

    That is the score of a model that prefers the longer answer; one with a tie is wrong.
    """
    return Proportion(int((lengths[:, 0] > lengths[:, 1]).sum()), len(lengths))
