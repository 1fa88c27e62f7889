"""Loss, perplexity, accuracy and bits per character over all scored tokens of a text.

Text is scored in fixed windows, the same for all models: the sequences of a split are concatenated
and cut every `window` tokens. All tokens but the first are scored once, with the preceding tokens
of the window, 1 to `window`, as context. All means are weighted by token, never means of batch
means.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import collate
from data.batching.examples import Examples
from data.batching.packed_rows import PACKING_WINDOW, pack_best_fit
from data.sequences import Sequences
from model.llama import Llama
from model.loss import score_tokens

WINDOW_TOKENS = 256
# Tokens read at a time of a long split: whole windows, and little memory.
BLOCK_TOKENS = 128 * WINDOW_TOKENS


@dataclass(frozen=True)
class LMScore:
    """Sums over scored tokens, which add up over batches; the metrics are their quotients."""

    total_nats: float = 0.0
    num_tokens: int = 0
    num_correct: int = 0
    num_characters: int = 0

    def __add__(self, other: "LMScore") -> "LMScore":
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return LMScore(*(ours + theirs for ours, theirs in pairs))

    def compute_metrics(self) -> dict[str, float]:
        """Return loss (nats per token), perplexity, accuracy, bits_per_character and tokens."""
        loss = self.total_nats / self.num_tokens
        return {
            "loss": loss,
            # exp(710) overflows.
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.num_correct / self.num_tokens,
            "bits_per_character": self.total_nats / math.log(2) / max(self.num_characters, 1),
            "tokens": self.num_tokens,
        }

    def format_metrics(self) -> str:
        """Return the metrics as a line to print, for training and evaluation alike."""
        metrics = self.compute_metrics()
        return (
            f"loss {metrics['loss']:.4f}  perplexity {metrics['perplexity']:.3f}  "
            f"accuracy {metrics['accuracy']:.2%}  "
            f"bits/character {metrics['bits_per_character']:.4f}  ({metrics['tokens']:,} tokens)"
        )


@torch.no_grad()
def score_batch(model: Llama, ids: Tensor, targets: Tensor, characters: Tensor) -> LMScore:
    """Score ids[B, T] against targets[B, T], without targets below zero.

    `characters`[V] are the characters of each id.
    """
    hidden = model.model(ids, None, None, None).flatten(0, 1)
    flat_targets = targets.flatten()
    is_scored = flat_targets >= 0
    return _score_hidden(model, hidden[is_scored], flat_targets[is_scored], characters)


def _score_hidden(model: Llama, hidden: Tensor, targets: Tensor, characters: Tensor) -> LMScore:
    """Score final hidden states[N, D] against targets[N]."""
    losses, hits = score_tokens(hidden, model.lm_head.weight, targets)
    return LMScore(
        # A sum of many float32 losses would lose digits.
        total_nats=float(losses.double().sum()),
        num_tokens=len(targets),
        num_correct=int(hits.sum()),
        num_characters=int(characters[targets].sum()),
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
    """Score a stream of ids, int64[N], N > 1, in windows.

    `on_progress` gets the number of tokens after each batch.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    total = LMScore()
    block_tokens = window * rows
    for start in range(0, len(stream) - 1, block_tokens):
        # Blocks overlap by one token: the last target of a block is the first input of the next.
        block = stream[start : start + block_tokens + 1]
        num_targets = len(block) - 1
        length = min(window, num_targets)
        num_windows = math.ceil(num_targets / length)
        # The last window is padded; padding has no target.
        ids = np.zeros(num_windows * length, np.int64)
        ids[:num_targets] = block[:-1]
        targets = np.full(num_windows * length, -1, np.int64)
        targets[:num_targets] = block[1:]
        block_score = score_batch(
            model,
            torch.from_numpy(ids.reshape(num_windows, length)).to(device),
            torch.from_numpy(targets.reshape(num_windows, length)).to(device),
            characters,
        )
        total += block_score
        if on_progress:
            on_progress(block_score.num_tokens)
    return total


def score_pieces(
    model: Llama,
    pieces: Iterable[np.ndarray],
    characters_per_id: np.ndarray,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> LMScore:
    """Score the first `limit` ids of a text that comes in pieces of any size, int64[n] each.

    The windows lie as in the whole text, and memory holds one block of it.
    """
    total = LMScore()
    for block in _overlapping_blocks(pieces, limit):
        total += score_stream(model, block, characters_per_id, on_progress=on_progress)
    return total


def iter_split(split: Sequences) -> Iterator[np.ndarray]:
    """Yield the ids of a split in blocks, int64[n]."""
    for start in range(0, split.num_tokens, BLOCK_TOKENS):
        yield split.read_stream(start, start + BLOCK_TOKENS)


def _overlapping_blocks(pieces: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Yield the first `limit` ids in blocks of at most BLOCK_TOKENS + 1 that overlap by one."""
    pending: list[np.ndarray] = []
    num_pending = 0
    num_read = 0
    for piece in pieces:
        if limit is not None:
            piece = piece[: limit - num_read]
        num_read += len(piece)
        pending.append(piece)
        num_pending += len(piece)
        while num_pending > BLOCK_TOKENS:
            joined = np.concatenate(pending)
            yield joined[: BLOCK_TOKENS + 1]
            pending = [joined[BLOCK_TOKENS:]]
            num_pending -= BLOCK_TOKENS
        if num_read == limit:
            break
    # A single token has nothing before it to be predicted from.
    if num_pending > 1:
        yield np.concatenate(pending)


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
    """Score the answers of examples, packed into rows of `row_length` positions.

    The context of a token is its own conversation, never another of the same row. `limit` takes the
    first examples that fit a row. `on_progress` gets the number of examples after each batch.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    lengths = examples.lengths(0)
    fitting_indices = np.flatnonzero(lengths)[:limit]
    total = LMScore()
    for start in range(0, len(fitting_indices), PACKING_WINDOW):
        window_indices = fitting_indices[start : start + PACKING_WINDOW]
        packed_rows = pack_best_fit(lengths[window_indices], row_length)
        for batch_start in range(0, len(packed_rows), rows):
            row_examples = [
                [examples.example(int(window_indices[index]), 0) for index in row]
                for row in packed_rows[batch_start : batch_start + rows]
            ]
            batch = collate(row_examples, row_length).to(device)
            hidden = model.model(batch.ids, batch.positions, batch.attention_mask(), None)
            scored_hidden = hidden.flatten(0, 1)[batch.loss_indices]
            total += _score_hidden(model, scored_hidden, batch.targets, characters)
            if on_progress:
                on_progress(sum(len(row) for row in row_examples))
    return total
