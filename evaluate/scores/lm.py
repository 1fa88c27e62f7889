"""Loss, perplexity, accuracy and bits per character over all scored tokens of a split.

Measured on fixed windows, whatever the model: the split's sequences written one after another and cut every `window`
tokens. Every token but the first is scored once; its left context is what precedes it in its window, 0 to window - 1
tokens and the window's first token. All means are weighted by token, never means of batch means.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import collate
from data.batching.examples import Examples
from data.batching.packed_rows import PACKING_WINDOW, pack_best_fit
from model.llama import Llama
from model.loss import score_tokens

WINDOW_TOKENS = 256
# Tokens read at a time where a split is long: whole windows, and little enough for any memory.
BLOCK_TOKENS = 128 * WINDOW_TOKENS


@dataclass(frozen=True)
class LMScore:
    """Sums over scored tokens; the measures are their quotients."""

    total_nats: float
    num_tokens: int
    num_correct: int
    num_characters: int

    def __add__(self, other: "LMScore") -> "LMScore":
        return LMScore(
            *(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True))
        )

    def compute_metrics(self) -> dict[str, float]:
        """loss (nats a token), perplexity, accuracy, bits_per_character, and the tokens they are means over."""
        loss = self.total_nats / self.num_tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.num_correct / self.num_tokens,
            "bits_per_character": self.total_nats / math.log(2) / max(self.num_characters, 1),
            "tokens": self.num_tokens,
        }


@torch.no_grad()
def score_batch(model: Llama, ids: Tensor, targets: Tensor, characters: Tensor) -> LMScore:
    """Score ids[B, T] against targets[B, T]; targets below zero are left out. characters[V] counts per id."""
    hidden = model.model(ids, None, None, None).flatten(0, 1)
    flat = targets.flatten()
    is_scored = flat >= 0
    losses, hits = score_tokens(hidden[is_scored], model.lm_head.weight, flat[is_scored])
    return LMScore(
        float(losses.double().sum()),
        int(is_scored.sum()),
        int(hits.sum()),
        int(characters[flat[is_scored]].sum()),
    )


def score_stream(
    model: Llama,
    stream: np.ndarray,
    characters_per_id: np.ndarray,
    *,
    window: int = WINDOW_TOKENS,
    rows: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> LMScore:
    """Score a stream of ids, int64[N], N > 1, in windows. `on_progress` gets the number of tokens just scored."""
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    total = LMScore(0.0, 0, 0, 0)
    block_tokens = window * rows
    for start in range(0, len(stream) - 1, block_tokens):
        block = stream[start : start + block_tokens + 1]
        length = min(window, len(block) - 1)
        count = -(-(len(block) - 1) // length)
        ids = np.zeros(count * length, np.int64)
        targets = np.full(count * length, -1, np.int64)
        ids[: len(block) - 1], targets[: len(block) - 1] = block[:-1], block[1:]
        block_score = score_batch(
            model,
            torch.from_numpy(ids.reshape(count, length)).to(device),
            torch.from_numpy(targets.reshape(count, length)).to(device),
            characters,
        )
        total += block_score
        if on_progress:
            on_progress(block_score.num_tokens)
    return total


@torch.no_grad()
def score_examples(
    model: Llama,
    examples: Examples,
    row_length: int,
    characters_per_id: np.ndarray,
    *,
    rows: int = 8,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> LMScore:
    """Score the answers of examples packed into rows of `row_length` positions, each seeing only its own conversation.

    The left context of a token is all that precedes it in its conversation. `limit`: only the first so many examples that
    fit a row. `on_progress` gets the number of examples just scored.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    lengths = examples.lengths(0)
    fitting_indices = np.flatnonzero(lengths)[:limit]
    total = LMScore(0.0, 0, 0, 0)
    for start in range(0, len(fitting_indices), PACKING_WINDOW):
        window_indices = fitting_indices[start : start + PACKING_WINDOW]
        packed_rows = pack_best_fit(lengths[window_indices], row_length)
        for at in range(0, len(packed_rows), rows):
            row_examples = [
                [examples.example(int(window_indices[index]), 0) for index in row]
                for row in packed_rows[at : at + rows]
            ]
            batch = collate(row_examples, row_length).to(device)
            hidden = model.model(batch.ids, batch.positions, batch.attention_mask(), None).flatten(
                0, 1
            )[batch.loss_indices]
            losses, hits = score_tokens(hidden, model.lm_head.weight, batch.targets)
            total += LMScore(
                float(losses.double().sum()),
                len(batch.targets),
                int(hits.sum()),
                int(characters[batch.targets].sum()),
            )
            if on_progress:
                on_progress(sum(map(len, row_examples)))
    return total
