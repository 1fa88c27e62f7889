"""The loss of a Kneser-Ney trigram, the baseline of a language model."""

import math
from dataclasses import asdict, dataclass

import numpy as np

from common.errors import UserError
from data.shards import ShardSet, load_run_shard_set
from evaluate.metrics.kneser_ney import MAX_PARTITION_POSITIONS, compute_probabilities
from evaluate.options import TrigramOptions
from evaluate.result import EvalResult, report_result


@dataclass(frozen=True)
class TrigramScore:
    """Metrics of the baseline on the validation stream.

    Results files have the fields under these names.
    """

    loss: float
    """Nats per scored token."""
    perplexity: float
    bits_per_character: float
    tokens: int
    """Number of scored tokens: all of the validation stream except the first."""
    characters: int
    """Number of characters of the scored tokens."""
    train_tokens: int
    """Number of tokens that were counted."""
    discounts: list[float]
    """The absolute discounts of the orders 1, 2 and 3."""


def score_trigram_baseline(
    shards: ShardSet, max_partition_positions: int = MAX_PARTITION_POSITIONS
) -> TrigramScore:
    """Score the validation split with the trigrams of the training split.

    Each split is one stream of tokens. All validation tokens except the first are scored.
    `max_partition_positions` is the maximum number of training positions in memory at once. Raises
    UserError if the set is not text, if the validation split has fewer than 2 tokens, or if the
    training split has fewer than 3.
    """
    if not shards.kind.is_text:
        raise UserError(
            f"{shards.folder} holds {shards.kind.name}, not text: a trigram is the baseline of a "
            "pretraining run; name its data with --data"
        )
    train = shards.load_text("train")
    validation = shards.load_text("validation")
    if validation.num_tokens < 2:
        raise UserError(
            f"{shards.folder} has {validation.num_tokens} validation tokens; "
            "scoring needs at least 2"
        )
    tokenizer = shards.load_tokenizer()
    # Each row of `queries` is a scored token after its context of two tokens. The context of the
    # second token of the stream is a single token; -1 stands for the missing one.
    ids = np.concatenate([[-1], validation.read_stream(0, validation.num_tokens)])
    queries = np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1)
    token_probabilities, discounts = compute_probabilities(
        train, queries, tokenizer.vocab_size, max_partition_positions
    )
    total_nats = -float(np.log(token_probabilities).sum())
    num_characters = int(tokenizer.characters_per_id[ids[2:]].sum(dtype=np.int64))
    loss = total_nats / len(queries)
    return TrigramScore(
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_character=total_nats / math.log(2) / max(num_characters, 1),
        tokens=len(queries),
        characters=num_characters,
        train_tokens=train.num_tokens,
        discounts=discounts,
    )


def run_trigram(options: TrigramOptions) -> None:
    """Score the trigram of a shard set, or of the set that a run was trained on; report it."""
    if options.data:
        shards = ShardSet.open(options.data)
    else:
        assert options.checkpoint is not None
        shards = load_run_shard_set(options.checkpoint)
    score = score_trigram_baseline(shards)
    discounts = "  ".join(f"{discount:.3f}" for discount in score.discounts)
    lines = [
        f"Kneser-Ney trigram on {shards.folder}: trained on {score.train_tokens:,} tokens",
        f"discounts, orders 1 to 3   {discounts}",
        f"scored                     {score.tokens:,} tokens, {score.characters:,} characters",
        f"cross-entropy              {score.loss:.4f} nats/token",
        f"perplexity                 {score.perplexity:.2f}",
        f"bits per character         {score.bits_per_character:.4f}",
    ]
    provenance = {"data": str(shards.folder), "data_fingerprint": shards.fingerprint}
    report_result(EvalResult(lines, asdict(score), provenance), options.json_file)
