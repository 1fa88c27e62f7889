"""Loss, perplexity, accuracy and bits per character over all scored tokens of a text.

Text is scored in fixed windows, the same for all models: the sequences of a split are concatenated
and cut every `window` tokens. Every token except the first of the text is scored once, with the
tokens before it in its window, 1 to `window` of them, as context. A mean is taken over all tokens
of a text at once; it is not a mean of batch means, in which the tokens of a small last batch would
weigh more.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.batching.collate import collate
from data.batching.examples import Example, Examples
from data.batching.packed_rows import PACKING_WINDOW, pack_best_fit
from data.sequences import Sequences
from model.attention.segments import Segments
from model.llama import Llama
from model.loss import score_tokens

WINDOW_TOKENS = 256
# Packed rows that are scored together, and the positions at which long rows become fewer.
MAX_SCORED_ROWS = 8
MAX_SCORED_TOKENS = 32_768
# Number of tokens of a long split that are read at once: a multiple of the window, so that the
# windows are those of the whole text.
BLOCK_TOKENS = 128 * WINDOW_TOKENS


@dataclass(frozen=True)
class LMScore:
    """Sums over scored tokens. The scores of batches can be added; metrics are ratios of the sums.

    The characters are those of the scored tokens.
    """

    total_nats: float = 0.0  # cross-entropy
    num_tokens: int = 0
    num_correct: int = 0  # targets that are the most likely token
    num_characters: int = 0

    def __add__(self, other: "LMScore") -> "LMScore":
        return LMScore(
            self.total_nats + other.total_nats,
            self.num_tokens + other.num_tokens,
            self.num_correct + other.num_correct,
            self.num_characters + other.num_characters,
        )

    def compute_metrics(self) -> dict[str, float]:
        """Return loss (nats per token), perplexity, accuracy, bits_per_character and tokens."""
        loss = self.total_nats / self.num_tokens
        return {
            "loss": loss,
            # The exponential of more than 709 overflows a float.
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.num_correct / self.num_tokens,
            # Dividing by ln 2 turns nats into bits.
            "bits_per_character": self.total_nats / math.log(2) / max(self.num_characters, 1),
            "tokens": self.num_tokens,
        }

    def format_metrics(self) -> str:
        """Return the metrics as a line, which training and evaluation print."""
        metrics = self.compute_metrics()
        return (
            f"loss {metrics['loss']:.4f}  perplexity {metrics['perplexity']:.3f}  "
            f"accuracy {metrics['accuracy']:.2%}  "
            f"bits/character {metrics['bits_per_character']:.4f}  ({metrics['tokens']:,} tokens)"
        )


@torch.no_grad()
def score_batch(model: Llama, ids: Tensor, targets: Tensor, characters: Tensor) -> LMScore:
    """Score ids[B, T] against targets[B, T]; targets below zero, the padding, are not scored.

    `characters`[V] is the number of characters of each id.
    """
    hidden = read_text(model, ids).flatten(0, 1)
    flat_targets = targets.flatten()
    is_scored = flat_targets >= 0
    return _score_hidden(model, hidden[is_scored], flat_targets[is_scored], characters)


def read_text(model: Llama, ids: Tensor) -> Tensor:
    """Return the final hidden states of ids[B, T], [B, T, D].

    Keys and values have the number format that they have in the KV cache of the model.
    """
    cache = None if model.kv_cache_dtype is None else model.new_cache(*ids.shape)
    # Without `positions` and `mask`: positions count up, and attention is causal.
    hidden: Tensor = model.model(ids, None, None, cache)
    return hidden


def _score_hidden(model: Llama, hidden: Tensor, targets: Tensor, characters: Tensor) -> LMScore:
    """Score the final hidden states, hidden[N, D], against targets[N].

    `characters`[V] is the number of characters of each id.
    """
    losses, is_correct = score_tokens(hidden, model.lm_head.weight, targets)
    return LMScore(
        # In float64, because a sum of many float32 losses would lose digits.
        total_nats=float(losses.double().sum()),
        num_tokens=len(targets),
        num_correct=int(is_correct.sum()),
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
    """Score a stream of ids, int64[N] with N > 1, in windows of `window` tokens.

    A batch has `rows` windows. `characters_per_id`[V] is that of the tokenizer. `on_progress` is
    called after each batch with the number of tokens that were scored in it.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    total = LMScore()
    block_tokens = window * rows
    for start in range(0, len(stream) - 1, block_tokens):
        # Blocks overlap by one token: the last target of a block is the first input of the next.
        block = stream[start : start + block_tokens + 1]
        num_targets = len(block) - 1
        # A text shorter than a window needs no padding.
        length = min(window, num_targets)
        num_windows = math.ceil(num_targets / length)
        # The last window is padded with id 0; a target of -1 is not scored.
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


def score_blocks(
    model: Llama,
    id_blocks: Iterable[np.ndarray],
    characters_per_id: np.ndarray,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> LMScore:
    """Score the first `limit` ids of a text that comes in blocks of any size, int64[n] each.

    The windows are the same as if the whole text came at once, but only about BLOCK_TOKENS ids of
    it are in memory. For the other arguments see `score_stream`.
    """
    total = LMScore()
    for block in _overlapping_blocks(id_blocks, limit):
        total += score_stream(model, block, characters_per_id, on_progress=on_progress)
    return total


def iter_split(split: Sequences) -> Iterator[np.ndarray]:
    """Yield the ids of a split in blocks of BLOCK_TOKENS or, at the end, less, int64[n] each."""
    for start in range(0, split.num_tokens, BLOCK_TOKENS):
        yield split.read_stream(start, start + BLOCK_TOKENS)


def _overlapping_blocks(id_blocks: Iterable[np.ndarray], limit: int | None) -> Iterator[np.ndarray]:
    """Yield the first `limit` ids in blocks of at most BLOCK_TOKENS + 1 that overlap by one.

    The last id of a block is the first of the next, which needs it as the input of its first
    target.
    """
    pending: list[np.ndarray] = []
    num_pending = 0
    num_read = 0
    for ids in id_blocks:
        if limit is not None:
            ids = ids[: limit - num_read]
        num_read += len(ids)
        pending.append(ids)
        num_pending += len(ids)
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


def count_scored_rows(row_length: int) -> int:
    """Return how many packed rows are scored together: 8, and fewer if they are long."""
    return max(1, min(MAX_SCORED_ROWS, MAX_SCORED_TOKENS // row_length))


@torch.no_grad()
def score_examples(
    model: Llama,
    examples: Examples,
    row_length: int,
    characters_per_id: np.ndarray,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> LMScore:
    """Score the answers of examples, packed into rows of `row_length` positions.

    Examples in the same row do not attend to each other. Only the first
    `limit` examples that fit a row are scored (None: all). `characters_per_id`[V] is that of the
    tokenizer. `on_progress` is called after each batch with the number of examples in it.
    """
    rows = count_scored_rows(row_length)
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    # An example that does not fit a row has length 0.
    lengths = examples.lengths(epoch=0)
    fitting_indices = np.flatnonzero(lengths)[:limit]
    total = LMScore()
    # Packed as in training, one window of examples at a time.
    for start in range(0, len(fitting_indices), PACKING_WINDOW):
        window_indices = fitting_indices[start : start + PACKING_WINDOW]
        packed_rows = pack_best_fit(lengths[window_indices], row_length)
        for batch_start in range(0, len(packed_rows), rows):
            row_examples = [
                [examples.example(int(window_indices[index]), epoch=0) for index in row]
                for row in packed_rows[batch_start : batch_start + rows]
            ]
            total += _score_rows(model, row_examples, row_length, characters)
            if on_progress:
                on_progress(sum(len(row) for row in row_examples))
    return total


@torch.no_grad()
def score_each_example(
    model: Llama, examples: Examples, characters_per_id: np.ndarray
) -> list[LMScore]:
    """Return the score of each example by itself, of no tokens if it does not fit a row.

    `characters_per_id`[V] is that of the tokenizer.
    """
    device = model.lm_head.weight.device
    characters = torch.from_numpy(characters_per_id.astype(np.int64)).to(device)
    scores = []
    for index, length in enumerate(examples.lengths(epoch=0).tolist()):
        score = LMScore()
        if length:
            example = examples.example(index, epoch=0)
            score = _score_rows(model, [[example]], length, characters)
        scores.append(score)
    return scores


def _score_rows(
    model: Llama, row_examples: list[list[Example]], row_length: int, characters: Tensor
) -> LMScore:
    """Score the answers of examples in rows of `row_length` positions, a list for each row."""
    batch = collate(row_examples, row_length).to(characters.device)
    mask: Tensor | Segments | None = batch.segments
    cache = None
    if model.kv_cache_dtype is not None:
        # Keys and values are those that decoding would read.
        cache = model.new_cache(*batch.ids.shape)
        mask = None if batch.segments is None else batch.segments.mask_on(characters.device)
    hidden = model.model(batch.ids, positions=batch.positions, mask=mask, cache=cache)
    scored_hidden = hidden.flatten(0, 1)[batch.loss_indices]
    return _score_hidden(model, scored_hidden, batch.targets, characters)
