"""Interpolated Kneser-Ney trigram over token ids, counted within bounded memory.

The estimate is that of Kneser and Ney ("Improved backing-off for m-gram language modeling", ICASSP
1995) in the interpolated form of Chen and Goodman ("An empirical study of smoothing techniques for
language modeling", 1999), with one absolute discount per order, `D = n1 / (n1 + 2 n2)`, where n1
and n2 are the numbers of n-grams that occur once and twice:

    P(w | u v) = (max(c(u v w) - D3, 0) + D3 * types(u v .) * P(w | v)) / c(u v .)
    P(w | v)   = (max(k(v w)   - D2, 0) + D2 * types(v .)   * P(w))     / k(v .)
    P(w)       = (max(k(w)     - D1, 0) + D1 * types(.)     / V)        / k(.)

`c` counts occurrences. `k` counts continuations: k(v w) is the number of different tokens before
`v w`, and k(w) the number of different `v` among those pairs. `types` is the number of different
words after a context. `V` is the size of the vocabulary. If a context does not occur, the estimate
is that of the next lower order.

Scoring `w` after `u v` needs only n-grams with the middle token `v`. The training stream is
therefore counted for one range of middle tokens at a time, and only the contexts of the queries are
looked up. The peak of memory is that of one range, for any size of corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from common.errors import UserError
from common.progress import progress_bar

# A key packs the three ids of a trigram into one int64, the first id in the highest bits. 21 bits
# per id allow vocabularies of up to two million.
ID_BITS = 21
ID_MASK = (1 << ID_BITS) - 1
PAIR_MASK = (1 << 2 * ID_BITS) - 1
# Number of training positions that are counted at once; they need about 1.2 GB at the peak.
MAX_PARTITION_POSITIONS = 1 << 25
# Number of tokens that are read at once.
READ_CHUNK_TOKENS = 1 << 22


class TokenStream(Protocol):
    """The concatenated tokens of a split, such as `data.sequences.Sequences`."""

    @property
    def num_tokens(self) -> int: ...

    def read_stream(self, start: int, stop: int) -> np.ndarray: ...


@dataclass(frozen=True)
class CountTable:
    """Counts of n-gram keys and of their contexts.

    The context of an n-gram is the n-gram without its last id, which is in the lowest bits.
    """

    keys: np.ndarray
    """The different keys in ascending order, int64[n]."""
    starts: np.ndarray
    """Start of each key in the sorted occurrences, then the number of occurrences, int64[n + 1]."""

    @classmethod
    def from_occurrences(cls, occurrences: np.ndarray) -> "CountTable":
        """Count the keys in `occurrences`, int64[m], which is sorted in place to save memory."""
        occurrences.sort()
        is_run_start = np.ones(len(occurrences), dtype=bool)
        np.not_equal(occurrences[1:], occurrences[:-1], out=is_run_start[1:])
        starts = np.flatnonzero(is_run_start)
        return cls(occurrences[starts], np.append(starts, len(occurrences)))

    def num_keys_with_count(self, count: int) -> int:
        """Return how many keys occur exactly `count` times."""
        return int(np.count_nonzero(np.diff(self.starts) == count))

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Return count, context count and context types of each of `keys`, int64[3, len(keys)].

        The context count is the number of occurrences of all n-grams with the context of the key,
        the context types the number of different ones. All are 0 for n-grams that do not occur.
        """
        # The n-grams of one context are neighbors among the sorted keys: the bits of the last id
        # run from all zeros to all ones.
        context_start = np.searchsorted(self.keys, keys & ~ID_MASK)
        context_stop = np.searchsorted(self.keys, (keys | ID_MASK) + 1)
        key_start = np.searchsorted(self.keys, keys)
        key_stop = np.searchsorted(self.keys, keys + 1)
        return np.stack(
            [
                self.starts[key_stop] - self.starts[key_start],
                self.starts[context_stop] - self.starts[context_start],
                context_stop - context_start,
            ]
        )


@dataclass
class NgramOrder:
    """One order of the model: counts for all queries, and for the discount of the order."""

    counts: np.ndarray
    """n-gram count, context count and context types of each query, int64[3, n]."""
    num_singletons: int = 0
    num_doubletons: int = 0

    def accumulate(self, table: CountTable, keys: np.ndarray, positions: np.ndarray) -> None:
        """Add the counts of one range of middle ids, and look up the queries of this range.

        `keys` are the keys of all queries, and `positions` the indices of those in the range.
        """
        self.num_singletons += table.num_keys_with_count(1)
        self.num_doubletons += table.num_keys_with_count(2)
        self.counts[:, positions] = table.lookup(keys[positions])

    @property
    def discount(self) -> float:
        """Return the absolute discount D = n1 / (n1 + 2 n2) of this order."""
        if not self.num_singletons:
            # With a discount of 0, an id that never follows a context would have probability 0
            # after it. Any value between 0 and 1 avoids that.
            return 0.5
        return self.num_singletons / (self.num_singletons + 2 * self.num_doubletons)

    def interpolate(self, lower: np.ndarray) -> np.ndarray:
        """Return the probabilities of the queries in this order, float64[n].

        `lower` are those in the order below.
        """
        count, context_count, context_types = self.counts
        # The numerator of the formulas at the top of this module.
        mass = np.maximum(count - self.discount, 0) + self.discount * context_types * lower
        return np.where(context_count > 0, mass / np.maximum(context_count, 1), lower)


def compute_probabilities(
    train: TokenStream,
    queries: np.ndarray,
    vocabulary_size: int,
    max_partition_positions: int = MAX_PARTITION_POSITIONS,
) -> tuple[np.ndarray, list[float]]:
    """Return the probability of the last id of each query, and the discounts of orders 1, 2 and 3.

    Args:
        train: the training stream.
        queries: int64[n, 3], trigrams of ids. If the first id is -1, the middle id is the whole
            context.
        vocabulary_size: the number of ids.
        max_partition_positions: maximum number of training positions in memory at once, unless a
            single middle id has more.

    The probabilities are float64[n]. Raises UserError if `train` has no trigram.
    """
    if train.num_tokens < 3:
        raise UserError(
            f"the training split has {train.num_tokens} tokens; a trigram needs at least 3"
        )
    trigrams = NgramOrder(np.zeros((3, len(queries)), dtype=np.int64))
    bigrams = NgramOrder(np.zeros((3, len(queries)), dtype=np.int64))
    # A key has no bits for -1. The keys of such queries are used for pairs only, without the first
    # id.
    keys = _pack_keys(np.maximum(queries[:, 0], 0), queries[:, 1], queries[:, 2])
    continuation_counts = np.zeros(vocabulary_size, dtype=np.int64)
    occurrences = _count_middle_ids(train, vocabulary_size)
    with progress_bar("counting trigrams", total=int(occurrences.sum()), unit="tok") as bar:
        for low, high in _partition_ids(occurrences, max_partition_positions):
            num_positions = int(occurrences[low:high].sum())
            trigram_table = CountTable.from_occurrences(
                _trigram_keys(train, low, high, num_positions)
            )
            positions = np.flatnonzero((queries[:, 1] >= low) & (queries[:, 1] < high))
            # The counts of a query without a first id stay 0, so its estimate is that of the pair.
            trigrams.accumulate(trigram_table, keys, positions[queries[positions, 0] >= 0])
            # Lower orders count continuations: each different trigram u v w is one occurrence of
            # the pair v w, and each different pair v w is one of the word w.
            bigram_table = CountTable.from_occurrences(trigram_table.keys & PAIR_MASK)
            bigrams.accumulate(bigram_table, keys & PAIR_MASK, positions)
            last_ids = bigram_table.keys & ID_MASK
            continuation_counts += np.bincount(last_ids, minlength=vocabulary_size)
            bar.update(num_positions)
    unigrams = _unigram_order(continuation_counts, queries[:, 2])
    # The order below unigrams is the uniform distribution.
    probabilities = np.full(len(queries), 1 / vocabulary_size)
    for order in (unigrams, bigrams, trigrams):
        probabilities = order.interpolate(probabilities)
    return probabilities, [order.discount for order in (unigrams, bigrams, trigrams)]


def _unigram_order(continuation_counts: np.ndarray, last_ids: np.ndarray) -> NgramOrder:
    """Return the unigram counts for queries whose last ids are `last_ids`, int64[n].

    `continuation_counts`[V] are the numbers of different ids before each id. The context of a
    unigram is empty, so its count and its types are equal for all queries.
    """
    context_counts = np.full(len(last_ids), continuation_counts.sum())
    context_types = np.full(len(last_ids), np.count_nonzero(continuation_counts))
    return NgramOrder(
        # int64[3, n], as `NgramOrder.counts`.
        np.stack([continuation_counts[last_ids], context_counts, context_types]),
        num_singletons=int(np.sum(continuation_counts == 1)),
        num_doubletons=int(np.sum(continuation_counts == 2)),
    )


def _count_middle_ids(train: TokenStream, vocabulary_size: int) -> np.ndarray:
    """Return how often each id is the middle of a trigram, int64[V]."""
    counts = np.zeros(vocabulary_size, dtype=np.int64)
    for start in range(1, train.num_tokens - 1, READ_CHUNK_TOKENS):
        ids = train.read_stream(start, min(start + READ_CHUNK_TOKENS, train.num_tokens - 1))
        counts += np.bincount(ids, minlength=vocabulary_size)
    return counts


def _partition_ids(occurrences: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges [low, high) of ids that have at most `limit` occurrences together.

    An id with more occurrences is a range of its own. `occurrences`[V] are those of each id.
    """
    # The ids [low, high) occur cumulative[high] - cumulative[low] times.
    cumulative = np.concatenate([[0], np.cumsum(occurrences)])
    low = 0
    while low < len(occurrences):
        # The index of the first cumulative count above the limit, one after the largest `high`.
        first_above = np.searchsorted(cumulative, cumulative[low] + limit, side="right")
        high = max(low + 1, int(first_above) - 1)
        yield low, high
        low = high


def _trigram_keys(train: TokenStream, low: int, high: int, count: int) -> np.ndarray:
    """Return the keys of the `count` trigrams whose middle id is in `[low, high)`, int64[count]."""
    keys = np.empty(count, dtype=np.int64)
    num_filled = 0
    for start in range(0, train.num_tokens - 2, READ_CHUNK_TOKENS):
        # The reads overlap by two tokens, so that no trigram is lost between them.
        ids = train.read_stream(start, min(start + READ_CHUNK_TOKENS + 2, train.num_tokens))
        middle = ids[1:-1]
        positions = np.flatnonzero((middle >= low) & (middle < high))
        keys[num_filled : num_filled + len(positions)] = _pack_keys(
            ids[positions], middle[positions], ids[positions + 2]
        )
        num_filled += len(positions)
    return keys


def _pack_keys(first: np.ndarray, middle: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the keys of trigrams, int64[n]; the arguments are their ids, int64[n] each."""
    return (first << 2 * ID_BITS) | (middle << ID_BITS) | last
