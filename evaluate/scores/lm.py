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

from data.batching.collate import assemble
from data.batching.examples import Examples
from data.batching.packed_rows import WINDOW as PACKED
from data.batching.packed_rows import pack
from model.llama import Llama
from model.loss import score

WINDOW = 256
# Tokens read at a time where a split is long: whole windows, and little enough for any memory.
BLOCK = 128 * WINDOW


@dataclass(frozen=True)
class Score:
    """Sums over scored tokens; the measures are their quotients."""

    nats: float
    tokens: int
    correct: int
    characters: int

    def __add__(self, other: "Score") -> "Score":
        return Score(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))

    def measures(self) -> dict[str, float]:
        """loss (nats a token), perplexity, accuracy, bits_per_character, and the tokens they are means over."""
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.correct / self.tokens,
            "bits_per_character": self.nats / math.log(2) / max(self.characters, 1),
            "tokens": self.tokens,
        }


@torch.no_grad()
def score_batch(model: Llama, ids: Tensor, targets: Tensor, characters: Tensor) -> Score:
    """Score ids[B, T] against targets[B, T]; targets below zero are left out. characters[V] counts per id."""
    hidden = model.model(ids, None, None, None).flatten(0, 1)
    flat = targets.flatten()
    kept = flat >= 0
    losses, hits = score(hidden[kept], model.lm_head.weight, flat[kept])
    return Score(float(losses.double().sum()), int(kept.sum()), int(hits.sum()), int(characters[flat[kept]].sum()))


def score_stream(
    model: Llama, stream: np.ndarray, characters_per_id: np.ndarray, *, window: int = WINDOW, rows: int = 16,
    on_progress: Callable[[int], object] | None = None,
) -> Score:
    """Score a stream of ids, int64[N], N > 1, in windows. `on_progress` gets the number of tokens just scored."""
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    total = Score(0.0, 0, 0, 0)
    cells = window * rows
    for start in range(0, len(stream) - 1, cells):
        block = stream[start : start + cells + 1]
        length = min(window, len(block) - 1)
        count = -(-(len(block) - 1) // length)
        ids = np.zeros(count * length, np.int64)
        targets = np.full(count * length, -1, np.int64)
        ids[: len(block) - 1], targets[: len(block) - 1] = block[:-1], block[1:]
        part = score_batch(
            model, torch.from_numpy(ids.reshape(count, length)).to(device),
            torch.from_numpy(targets.reshape(count, length)).to(device), characters,
        )
        total += part
        if on_progress:
            on_progress(part.tokens)
    return total


@torch.no_grad()
def score_examples(
    model: Llama, examples: Examples, length: int, characters_per_id: np.ndarray, *, rows: int = 8, limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> Score:
    """Score the answers of examples packed into rows of `length` positions, each seeing only its own conversation.

    The left context of a token is all that precedes it in its conversation. `limit`: only the first so many examples that
    fit a row. `on_progress` gets the number of examples just scored.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    lengths = examples.lengths(0)
    fitting = np.flatnonzero(lengths)[:limit]
    total = Score(0.0, 0, 0, 0)
    for start in range(0, len(fitting), PACKED):
        stretch = fitting[start : start + PACKED]
        packed = pack(lengths[stretch], length)
        for at in range(0, len(packed), rows):
            chosen = [[examples.example(int(stretch[index]), 0) for index in row] for row in packed[at : at + rows]]
            batch = assemble(chosen, length).to(device)
            hidden = model.model(batch.ids, batch.positions, batch.mask(), None).flatten(0, 1)[batch.scored]
            losses, hits = score(hidden, model.lm_head.weight, batch.targets)
            total += Score(float(losses.double().sum()), len(batch.targets), int(hits.sum()),
                           int(characters[batch.targets].sum()))
            if on_progress:
                on_progress(sum(map(len, chosen)))
    return total
