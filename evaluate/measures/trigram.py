"""The baseline that a language model has to beat: an interpolated Kneser-Ney trigram over token ids.

It counts the training split of a shard set and scores the validation split, so that the loss of a
model on the same tokens can be compared with it.

The estimate is Kneser and Ney's ("Improved backing-off for m-gram language modeling", ICASSP 1995) in the interpolated
form of Chen and Goodman ("An empirical study of smoothing techniques for language modeling", 1999), with one absolute
discount per order, `D = n1 / (n1 + 2 n2)`, where n1 and n2 are how many n-grams were counted once and twice:

    P(w | u v) = (max(c(u v w) - D3, 0) + D3 * types(u v .) * P(w | v)) / c(u v .)
    P(w | v)   = (max(k(v w)   - D2, 0) + D2 * types(v .)   * P(w))     / k(v .)
    P(w)       = (max(k(w)     - D1, 0) + D1 * types(.)     / V)        / k(.)

`c` counts occurrences. `k` counts continuations: k(v w) is the number of different tokens seen before `v w`, and k(w)
the number of different `v` among those pairs. `types` is the number of different words seen after a context; a context
that was never seen leaves the estimate to the next lower order.

All that scoring `w` after `u v` needs shares the middle token `v`. So the training stream is counted one range of
middle tokens at a time, and only the contexts of the validation stream are ever looked up: memory stays within one
range, whatever the size of the corpus.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment
from common.progress import progress_bar
from data.shards import ShardSet, load_run_shard_set
from evaluate.options import TrigramOptions

# Three ids fill one int64 key, highest first: vocabularies of up to two million.
ID_BITS = 21
ID_MASK = (1 << ID_BITS) - 1
PAIR_MASK = (1 << 2 * ID_BITS) - 1
# Training positions counted at once: about 1.2 GB at the peak.
MAX_PARTITION_POSITIONS = 1 << 25
READ_CHUNK_TOKENS = 1 << 22


class TokenStream(Protocol):
    """A split's tokens one after another (`data.shards.Sequences`)."""

    @property
    def num_tokens(self) -> int: ...

    def read_stream(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class CountTable:
    """How often each key occurs in a multiset, and how often each context: a key's bits above its last id."""

    keys: np.ndarray
    """The different keys, sorted, int64[n]."""
    starts: np.ndarray
    """Where each key's run begins among the sorted occurrences, and where the last ends: int64[n + 1]."""

    @classmethod
    def from_occurrences(cls, occurrences: np.ndarray) -> "CountTable":
        """Count the keys of `occurrences` (int64[m]), which is sorted in place."""
        occurrences.sort()
        is_run_start = np.ones(len(occurrences), dtype=bool)
        np.not_equal(occurrences[1:], occurrences[:-1], out=is_run_start[1:])
        starts = np.flatnonzero(is_run_start)
        return cls(occurrences[starts], np.append(starts, len(occurrences)))

    def num_keys_with_count(self, count: int) -> int:
        """How many keys occur exactly `count` times."""
        return int(np.count_nonzero(np.diff(self.starts) == count))

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys`: its count, its context's count, and the keys that share its context; int64[3, n]."""
        low, at, after, high = (
            np.searchsorted(self.keys, bound)
            for bound in (keys & ~ID_MASK, keys, keys + 1, (keys | ID_MASK) + 1)
        )
        return np.stack(
            [self.starts[after] - self.starts[at], self.starts[high] - self.starts[low], high - low]
        )


@dataclass
class NgramOrder:
    """One order of the model: the counts of the scored positions, and the counts that give its discount."""

    counts: np.ndarray
    """For each scored position the n-gram's count, its context's count and its context's types, int64[3, n]."""
    num_singletons: int = 0
    num_doubletons: int = 0

    def accumulate(self, table: CountTable, keys: np.ndarray, positions: np.ndarray) -> None:
        """Take in one range: its counts of counts, and the counts of the positions `positions` of `keys`."""
        self.num_singletons += table.num_keys_with_count(1)
        self.num_doubletons += table.num_keys_with_count(2)
        self.counts[:, positions] = table.lookup(keys[positions])

    @property
    def discount(self) -> float:
        """The absolute discount; one half where nothing was counted once, so that every word keeps some probability."""
        return (
            self.num_singletons / (self.num_singletons + 2 * self.num_doubletons)
            if self.num_singletons
            else 0.5
        )

    def interpolate(self, lower: np.ndarray) -> np.ndarray:
        """The probabilities of this order, float64[n], from those of the order below."""
        count, total, types = self.counts
        share = np.maximum(count - self.discount, 0) + self.discount * types * lower
        return np.where(total > 0, share / np.maximum(total, 1), lower)


def compute_probabilities(
    train: TokenStream,
    queries: np.ndarray,
    vocabulary_size: int,
    partition: int = MAX_PARTITION_POSITIONS,
) -> tuple[np.ndarray, list[float]]:
    """The probability of each query's last id after the two before it.

    `queries` is int64[n, 3]; a first id of -1 means that the context is the middle id alone. `partition` bounds the
    training positions held in memory at once (one token's own positions are always held together).
    Returns float64[n], and the discounts of the orders 1, 2 and 3. UserError if `train` has no trigram.
    """
    if train.num_tokens < 3:
        raise UserError(
            f"the training split has {train.num_tokens} tokens; a trigram needs at least 3"
        )
    trigrams, bigrams = (NgramOrder(np.zeros((3, len(queries)), dtype=np.int64)) for _ in range(2))
    keys = _pack_keys(np.maximum(queries[:, 0], 0), queries[:, 1], queries[:, 2])
    continuation_counts = np.zeros(vocabulary_size, dtype=np.int64)
    occurrences = _count_middle_ids(train, vocabulary_size)
    with progress_bar("counting trigrams", total=int(occurrences.sum()), unit="tok") as bar:
        for low, high in _partition_ids(occurrences, partition):
            table = CountTable.from_occurrences(
                _trigram_keys(train, low, high, int(occurrences[low:high].sum()))
            )
            positions = np.flatnonzero((queries[:, 1] >= low) & (queries[:, 1] < high))
            trigrams.accumulate(table, keys, positions[queries[positions, 0] >= 0])
            table = CountTable.from_occurrences(table.keys & PAIR_MASK)
            bigrams.accumulate(table, keys & PAIR_MASK, positions)
            continuation_counts += np.bincount(table.keys & ID_MASK, minlength=vocabulary_size)
            bar.update(int(occurrences[low:high].sum()))
    last_ids = queries[:, 2]
    totals = [
        np.full(len(last_ids), value)
        for value in (continuation_counts.sum(), np.count_nonzero(continuation_counts))
    ]
    unigrams = NgramOrder(
        np.stack([continuation_counts[last_ids], *totals]),
        *(int(np.sum(continuation_counts == times)) for times in (1, 2)),
    )
    result = np.full(len(queries), 1 / vocabulary_size)
    for level in (unigrams, bigrams, trigrams):
        result = level.interpolate(result)
    return result, [level.discount for level in (unigrams, bigrams, trigrams)]


def _count_middle_ids(train: TokenStream, vocabulary_size: int) -> np.ndarray:
    """How often each id is the middle of a trigram, int64[V]."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for start in range(1, train.num_tokens - 1, READ_CHUNK_TOKENS):
        ids = train.read_stream(start, min(start + READ_CHUNK_TOKENS, train.num_tokens - 1))
        counts += np.bincount(ids, minlength=vocabulary_size)
    return counts


def _partition_ids(occurrences: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of ids with at most `limit` occurrences each; an id that has more stands alone."""
    cumulative = np.concatenate([[0], np.cumsum(occurrences)])
    low = 0
    while low < len(occurrences):
        high = max(
            low + 1, int(np.searchsorted(cumulative, cumulative[low] + limit, side="right")) - 1
        )
        yield low, high
        low = high


def _trigram_keys(train: TokenStream, low: int, high: int, count: int) -> np.ndarray:
    """The keys of all `count` trigrams of the stream whose middle id is in `[low, high)`, int64[count]."""
    keys = np.empty(count, dtype=np.int64)
    filled = 0
    for start in range(0, train.num_tokens - 2, READ_CHUNK_TOKENS):
        ids = train.read_stream(start, min(start + READ_CHUNK_TOKENS + 2, train.num_tokens))
        middle = ids[1:-1]
        positions = np.flatnonzero((middle >= low) & (middle < high))
        keys[filled : filled + len(positions)] = _pack_keys(
            ids[positions], middle[positions], ids[positions + 2]
        )
        filled += len(positions)
    return keys


def _pack_keys(first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> np.ndarray:
    return (first << 2 * ID_BITS) | (middle << ID_BITS) | last


@dataclass(frozen=True)
class TrigramScore:
    """The figures of the baseline on the validation stream."""

    loss: float
    """Nats per scored token."""
    perplexity: float
    bits_per_character: float
    tokens: int
    """Scored positions: all of the validation stream but the first."""
    characters: int
    """Characters of the scored ids."""
    train_tokens: int
    discounts: list[float]
    """Of the orders 1, 2, 3."""


def score_trigram_baseline(
    shards: ShardSet, partition: int = MAX_PARTITION_POSITIONS
) -> TrigramScore:
    """Count the training split of `shards` as one stream and score every validation position but the first."""
    train, validation = shards.load_split("train"), shards.load_split("validation")
    if validation.num_tokens < 2:
        raise UserError(
            f"{shards.folder} has {validation.num_tokens} validation tokens; scoring needs at least 2"
        )
    tokenizer = shards.load_tokenizer()
    ids = np.concatenate([[-1], validation.read_stream(0, validation.num_tokens)])
    queries = np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1)
    token_probabilities, discounts = compute_probabilities(
        train, queries, tokenizer.vocab_size, partition
    )
    nats = -float(np.log(token_probabilities).sum())
    characters = int(tokenizer.characters_per_id[ids[2:]].sum(dtype=np.int64))
    loss = nats / len(queries)
    return TrigramScore(
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_character=nats / math.log(2) / max(characters, 1),
        tokens=len(queries),
        characters=characters,
        train_tokens=train.num_tokens,
        discounts=discounts,
    )


def run_trigram(options: TrigramOptions) -> None:
    """Score the baseline and print the figures; write the file that the options name."""
    if options.data:
        shards = ShardSet.open(options.data)
    else:
        assert options.checkpoint is not None
        shards = load_run_shard_set(options.checkpoint)
    score = score_trigram_baseline(shards)
    print(f"Kneser-Ney trigram on {shards.folder}: trained on {score.train_tokens:,} tokens")
    print(
        f"discounts, orders 1 to 3   {'  '.join(f'{discount:.3f}' for discount in score.discounts)}"
    )
    print(f"scored                     {score.tokens:,} tokens, {score.characters:,} characters")
    print(f"cross-entropy              {score.loss:.4f} nats/token")
    print(f"perplexity                 {score.perplexity:.2f}")
    print(f"bits per character         {score.bits_per_character:.4f}")
    if options.json_file:
        provenance: dict[str, Any] = {
            "data": str(shards.folder),
            "data_fingerprint": shards.fingerprint,
            "made": collect_environment(),
        }
        write_json(options.json_file, {**asdict(score), **provenance})
