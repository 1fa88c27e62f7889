"""The baseline that a language model has to beat: an interpolated Kneser-Ney trigram over token ids.

`python -m evaluate.trigram --data SHARDSET` counts the training split of a shard set and scores its validation split,
so that a loss on the same tokens has something to be compared with.

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
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import describe
from common.options import Parser, out_file
from common.progress import progress
from data.shards import ShardSet, shards_of_run

# Three ids fill one int64 key, highest first: vocabularies of up to two million.
ID_BITS = 21
ID_MASK = (1 << ID_BITS) - 1
PAIR_MASK = (1 << 2 * ID_BITS) - 1
# Training positions counted at once: about 1.2 GB at the peak.
PARTITION_POSITIONS = 1 << 25
READ_TOKENS = 1 << 22


class Stream(Protocol):
    """A split's tokens one after another (`data.shards.Sequences`)."""

    @property
    def total_tokens(self) -> int: ...

    def stream(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class CountTable:
    """How often each key occurs in a multiset, and how often each context: a key's bits above its last id."""

    keys: np.ndarray
    """The different keys, sorted, int64[n]."""
    starts: np.ndarray
    """Where each key's run begins among the sorted occurrences, and where the last ends: int64[n + 1]."""

    @classmethod
    def of(cls, occurrences: np.ndarray) -> "CountTable":
        """Count the keys of `occurrences` (int64[m]), which is sorted in place."""
        occurrences.sort()
        first = np.ones(len(occurrences), dtype=bool)
        np.not_equal(occurrences[1:], occurrences[:-1], out=first[1:])
        starts = np.flatnonzero(first)
        return cls(occurrences[starts], np.append(starts, len(occurrences)))

    def counted(self, times: int) -> int:
        """How many keys occur exactly `times` times."""
        return int(np.count_nonzero(np.diff(self.starts) == times))

    def look_up(self, keys: np.ndarray) -> np.ndarray:
        """For each of `keys`: its count, its context's count, and the keys that share its context; int64[3, n]."""
        low, at, after, high = (
            np.searchsorted(self.keys, bound)
            for bound in (keys & ~ID_MASK, keys, keys + 1, (keys | ID_MASK) + 1)
        )
        return np.stack([self.starts[after] - self.starts[at], self.starts[high] - self.starts[low], high - low])


@dataclass
class Level:
    """One order of the model: the counts of the scored positions, and the counts that give its discount."""

    counts: np.ndarray
    """For each scored position the n-gram's count, its context's count and its context's types, int64[3, n]."""
    once: int = 0
    twice: int = 0

    def add(self, table: CountTable, keys: np.ndarray, chosen: np.ndarray) -> None:
        """Take in one range: its counts of counts, and the counts of the positions `chosen` of `keys`."""
        self.once += table.counted(1)
        self.twice += table.counted(2)
        self.counts[:, chosen] = table.look_up(keys[chosen])

    @property
    def discount(self) -> float:
        """The absolute discount; one half where nothing was counted once, so that every word keeps some probability."""
        return self.once / (self.once + 2 * self.twice) if self.once else 0.5

    def interpolate(self, lower: np.ndarray) -> np.ndarray:
        """The probabilities of this order, float64[n], from those of the order below."""
        count, total, types = self.counts
        share = np.maximum(count - self.discount, 0) + self.discount * types * lower
        return np.where(total > 0, share / np.maximum(total, 1), lower)


def probabilities(
    train: Stream, queries: np.ndarray, vocabulary_size: int, partition: int = PARTITION_POSITIONS
) -> tuple[np.ndarray, list[float]]:
    """The probability of each query's last id after the two before it.

    `queries` is int64[n, 3]; a first id of -1 means that the context is the middle id alone. `partition` bounds the
    training positions held in memory at once (one token's own positions are always held together).
    Returns float64[n], and the discounts of the orders 1, 2 and 3. UserError if `train` has no trigram.
    """
    if train.total_tokens < 3:
        raise UserError(f"the training split has {train.total_tokens} tokens; a trigram needs at least 3")
    trigrams, bigrams = (Level(np.zeros((3, len(queries)), dtype=np.int64)) for _ in range(2))
    keys = _keys(np.maximum(queries[:, 0], 0), queries[:, 1], queries[:, 2])
    before = np.zeros(vocabulary_size, dtype=np.int64)
    occurrences = _middle_counts(train, vocabulary_size)
    with progress("counting trigrams", total=int(occurrences.sum()), unit="tok") as bar:
        for low, high in _ranges(occurrences, partition):
            table = CountTable.of(_trigram_keys(train, low, high, int(occurrences[low:high].sum())))
            chosen = np.flatnonzero((queries[:, 1] >= low) & (queries[:, 1] < high))
            trigrams.add(table, keys, chosen[queries[chosen, 0] >= 0])
            table = CountTable.of(table.keys & PAIR_MASK)
            bigrams.add(table, keys & PAIR_MASK, chosen)
            before += np.bincount(table.keys & ID_MASK, minlength=vocabulary_size)
            bar.update(int(occurrences[low:high].sum()))
    words = queries[:, 2]
    everything = [np.full(len(words), value) for value in (before.sum(), np.count_nonzero(before))]
    unigrams = Level(np.stack([before[words], *everything]), *(int(np.sum(before == times)) for times in (1, 2)))
    result = np.full(len(queries), 1 / vocabulary_size)
    for level in (unigrams, bigrams, trigrams):
        result = level.interpolate(result)
    return result, [level.discount for level in (unigrams, bigrams, trigrams)]


def _middle_counts(train: Stream, vocabulary_size: int) -> np.ndarray:
    """How often each id is the middle of a trigram, int64[V]."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for start in range(1, train.total_tokens - 1, READ_TOKENS):
        ids = train.stream(start, min(start + READ_TOKENS, train.total_tokens - 1))
        counts += np.bincount(ids, minlength=vocabulary_size)
    return counts


def _ranges(occurrences: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of ids with at most `limit` occurrences each; an id that has more stands alone."""
    reached = np.concatenate([[0], np.cumsum(occurrences)])
    low = 0
    while low < len(occurrences):
        high = max(low + 1, int(np.searchsorted(reached, reached[low] + limit, side="right")) - 1)
        yield low, high
        low = high


def _trigram_keys(train: Stream, low: int, high: int, count: int) -> np.ndarray:
    """The keys of all `count` trigrams of the stream whose middle id is in `[low, high)`, int64[count]."""
    keys = np.empty(count, dtype=np.int64)
    filled = 0
    for start in range(0, train.total_tokens - 2, READ_TOKENS):
        ids = train.stream(start, min(start + READ_TOKENS + 2, train.total_tokens))
        middle = ids[1:-1]
        at = np.flatnonzero((middle >= low) & (middle < high))
        keys[filled : filled + len(at)] = _keys(ids[at], middle[at], ids[at + 2])
        filled += len(at)
    return keys


def _keys(first: np.ndarray, middle: np.ndarray, word: np.ndarray) -> np.ndarray:
    return (first << 2 * ID_BITS) | (middle << ID_BITS) | word


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


def evaluate(shards: ShardSet, partition: int = PARTITION_POSITIONS) -> TrigramScore:
    """Count the training split of `shards` as one stream and score every validation position but the first."""
    train, validation = shards.split("train"), shards.split("validation")
    if validation.total_tokens < 2:
        raise UserError(f"{shards.folder} has {validation.total_tokens} validation tokens; scoring needs at least 2")
    tokenizer = shards.tokenizer()
    ids = np.concatenate([[-1], validation.stream(0, validation.total_tokens)])
    queries = np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1)
    found, discounts = probabilities(train, queries, tokenizer.vocabulary_size, partition)
    nats = -float(np.log(found).sum())
    characters = int(tokenizer.characters_per_id[ids[2:]].sum(dtype=np.int64))
    loss = nats / len(queries)
    return TrigramScore(
        loss=loss, perplexity=math.exp(loss), bits_per_character=nats / math.log(2) / max(characters, 1),
        tokens=len(queries), characters=characters, train_tokens=train.total_tokens, discounts=discounts,
    )


def main() -> None:
    """Entry point of `python -m evaluate.trigram`."""
    parser = Parser(prog="python -m evaluate.trigram", description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data", type=Path, metavar="SHARDSET", help="a prepared shard set")
    which.add_argument("--checkpoint", type=Path, metavar="RUN", help="a run: the shard set that it was trained on")
    parser.add_argument("--json", type=out_file, metavar="OUT", help="write the printed figures here")
    arguments = parser.parse_args()
    shards = ShardSet.open(arguments.data) if arguments.data else shards_of_run(arguments.checkpoint)
    score = evaluate(shards)
    print(f"Kneser-Ney trigram on {shards.folder}: trained on {score.train_tokens:,} tokens")
    print(f"discounts, orders 1 to 3   {'  '.join(f'{discount:.3f}' for discount in score.discounts)}")
    print(f"scored                     {score.tokens:,} tokens, {score.characters:,} characters")
    print(f"cross-entropy              {score.loss:.4f} nats/token")
    print(f"perplexity                 {score.perplexity:.2f}")
    print(f"bits per character         {score.bits_per_character:.4f}")
    if arguments.json:
        made: dict[str, Any] = {"data": str(shards.folder), "data_fingerprint": shards.fingerprint, "made": describe()}
        write_json(arguments.json, {**asdict(score), **made})


if __name__ == "__main__":
    run_main(main)
