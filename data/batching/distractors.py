"""Conversations about one passage among others: the reference holds the right one and distractors.

The other passages are those of other records of the same split. None of them may answer: a passage
is not drawn if it is the record's own, has the same title, or is one of which a question of the
record is asked, too. Which ones are drawn, and where the right one stands among them, are pure
functions of (seed, epoch, record): the passages of an epoch are put in one seeded random order, a
ring; a record begins anywhere in it, and takes the ones that follow. A passage that does not fit
ends the draw.

Memory holds no text, and some 100 bytes for each record and each passage.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from data.batching.answer_examples import AnswerLengths
from data.batching.examples import Example, KeptParts
from data.batching.shuffle import shuffle_in_place
from data.batching.summary_prompts import splitmix64
from data.records import Conversation, EncodedRecord
from data.stored_records import Records
from model.tokenizer.base import Tokenizer

# Between the passages of a reference, as where a question is asked with several that were found.
PASSAGE_SEPARATOR = "\n"
# Tells the order of the passages from the other shuffles of an epoch: see `data.batching.shuffle`.
_RING_KEY = 1 << 33
# A draw looks at up to this many passages for each that it wants, and for one more. A question that
# is asked of nearly every passage leaves hardly any.
_LOOKS_PER_PASSAGE = 16
# Passages that are encoded together.
_BATCH_PASSAGES = 1024


class PassageTable:
    """The different passages of a split: their lengths, and which of them may stand together."""

    def __init__(self, records: Records[Conversation], tokenizer: Tokenizer) -> None:
        """Read all records, and encode each passage once."""
        self._passage_of_record: list[int] = []
        self._first_record: list[int] = []  # of each passage
        self._title: list[int] = []  # of each passage; 0: none
        passages: dict[bytes, int] = {}
        titles: dict[bytes, int] = {}
        # The digest of each question, with its record.
        digests: list[int] = []
        asking_records: list[int] = []
        for index in range(len(records)):
            record = records.record(index)
            passage = passages.setdefault(_digest(record.reference), len(passages))
            self._passage_of_record.append(passage)
            if passage == len(self._first_record):
                self._first_record.append(index)
                title = titles.setdefault(_digest(record.title), len(titles) + 1)
                self._title.append(title if record.title else 0)
            for turn in record.turns:
                if turn.question:
                    digests.append(int.from_bytes(_digest(turn.question)[:8], "little"))
                    asking_records.append(index)
        # Numbers of the questions that several passages are asked.
        self._shared_of_record: dict[int, set[int]] = {}
        self._shared_of_passage: dict[int, set[int]] = {}
        self._find_shared_questions(
            np.array(digests, np.uint64), np.array(asking_records, np.int64)
        )
        # The ids of each passage, with the separator beside it.
        self.num_ids = self._count_ids(records, tokenizer)

    def __len__(self) -> int:
        return len(self._first_record)

    @property
    def num_records(self) -> int:
        """Return the number of records of the split."""
        return len(self._passage_of_record)

    def first_record(self, passage: int) -> int:
        """Return the first record that is about a passage."""
        return self._first_record[passage]

    def may_join(self, passage: int, record: int) -> bool:
        """Return whether a passage may stand beside that of a record."""
        own = self._passage_of_record[record]
        if passage == own or self._title[passage] == self._title[own] != 0:
            return False
        questions = self._shared_of_record.get(record)
        return questions is None or questions.isdisjoint(self._shared_of_passage.get(passage, ()))

    def _find_shared_questions(self, digests: np.ndarray, records: np.ndarray) -> None:
        """Fill the two dictionaries from the question digests, uint64[n], and their records."""
        passages = np.array(self._passage_of_record, np.int64)[records]
        # Equal questions are consecutive then, and of these the ones about one passage.
        order = np.lexsort((passages, digests))
        digests, passages, records = digests[order], passages[order], records[order]
        edges = np.flatnonzero(np.diff(digests)) + 1
        for start, stop in itertools.pairwise([0, *edges.tolist(), len(digests)]):
            if start == stop or passages[start] == passages[stop - 1]:
                continue
            for record in records[start:stop].tolist():
                self._shared_of_record.setdefault(record, set()).add(start)
            for passage in passages[start:stop].tolist():
                self._shared_of_passage.setdefault(passage, set()).add(start)

    def _count_ids(self, records: Records[Conversation], tokenizer: Tokenizer) -> list[int]:
        """Return the ids of each passage after a separator."""
        counts: list[int] = []
        for batch_start in range(0, len(self), _BATCH_PASSAGES):
            batch = self._first_record[batch_start : batch_start + _BATCH_PASSAGES]
            texts = [PASSAGE_SEPARATOR + records.record(index).reference for index in batch]
            counts += map(len, tokenizer.encode_continuation(texts))
        return counts


def _digest(text: str) -> bytes:
    """Return a digest of a text without its white space."""
    return hashlib.blake2b("".join(text.split()).encode(), digest_size=16).digest()


class DistractorDraw:
    """Draws the passages that stand beside those of records."""

    def __init__(
        self, table: PassageTable, count: int, max_tokens: int | None, seed: int | None
    ) -> None:
        """Draw `count` passages a record, fewer if they would have more than `max_tokens` tokens.

        Without a seed the draw is that of seed 0, in every epoch that of epoch 0.
        """
        self.count = count
        self._table = table
        self._max_tokens = max_tokens
        self._seed = seed
        self._open_epoch: int | None = None  # the one that was used last, and what it has drawn:
        self._ring: list[int] = []  # the passages in the order of the epoch
        self._bits: list[int] = []  # 64 random bits of each record

    def choose(self, record: int, num_ids: int, epoch: int, length: int | None) -> list[int]:
        """Return the passages beside that of a record of `num_ids` ids, in the order of the ring.

        Rows have `length` positions; None: no limit.
        """
        limits = [limit + 1 for limit in (length, self._max_tokens) if limit is not None]
        chosen: list[int] = []
        for passage in self._iter_candidates(record, epoch):
            num_ids += self._table.num_ids[passage]
            if any(num_ids > limit for limit in limits):
                break
            chosen.append(passage)
            if len(chosen) == self.count:
                break
        return chosen

    def place(self, record: int, epoch: int, num_others: int) -> int:
        """Return how many of the other passages stand before the right one."""
        # The bits from 40 on: others than those that the start in the ring depends on most.
        self._load_epoch(epoch)
        return (self._bits[record] >> 40) % (num_others + 1)

    def _iter_candidates(self, record: int, epoch: int) -> Iterator[int]:
        """Yield the passages that may stand beside that of a record, from its start in the ring."""
        self._load_epoch(epoch)
        ring = self._ring
        start = self._bits[record] % len(ring)
        for step in range(min(len(ring), _LOOKS_PER_PASSAGE * (self.count + 1))):
            passage = ring[(start + step) % len(ring)]
            if self._table.may_join(passage, record):
                yield passage

    def _load_epoch(self, epoch: int) -> None:
        """Draw the ring and the bits of an epoch, unless they are those that were used last."""
        if self._seed is None:
            epoch = 0
        if epoch == self._open_epoch:
            return
        seed = self._seed or 0
        ring = np.arange(len(self._table))
        shuffle_in_place(ring, seed, epoch, _RING_KEY)
        self._ring = ring.tolist()
        self._bits = splitmix64(seed, epoch, np.arange(self._table.num_records)).tolist()
        self._open_epoch = epoch


class DistractorLengths:
    """The lengths of `DistractorExamples`. Implements `data.batching.examples.ExampleLengths`."""

    def __init__(
        self, records: Records[Conversation], table: PassageTable, draw: DistractorDraw
    ) -> None:
        """Prepare for the records of a split."""
        self._table = table
        self._draw = draw
        self._num_answers = count_answers(records)

    def whole_spans(self, spans: np.ndarray, first_record: int) -> np.ndarray:
        """See `ExampleLengths`: the other passages come before all answers."""
        # Each record's first span among those of all, up to the number of the given ones.
        counts = self._num_answers[first_record:]
        num_records = int(np.searchsorted(np.cumsum(counts), len(spans))) + 1
        counts = counts[:num_records]
        last_spans = np.cumsum(counts) - 1
        added = [
            self.count_added(first_record + number, int(num_ids), None)
            for number, num_ids in enumerate(spans[last_spans, 1])
        ]
        return spans.astype(np.int64) + np.repeat(added, counts)[:, None]

    def fit(
        self, spans: np.ndarray, first_spans: np.ndarray, first_record: int, length: int
    ) -> KeptParts:
        """See `ExampleLengths`: a record keeps its answers first, and gets passages then."""
        kept = AnswerLengths().fit(spans, first_spans, first_record, length)
        num_ids = [
            count and count + self.count_added(first_record + number, count, length)
            for number, count in enumerate(kept.num_ids.tolist())
        ]
        return KeptParts(np.array(num_ids, np.int64), kept.num_answers)

    def count_added(self, record: int, num_ids: int, length: int | None, epoch: int = 0) -> int:
        """Return the ids of the passages that come to a record of `num_ids` ids."""
        chosen = self._draw.choose(record, num_ids, epoch, length)
        return sum(self._table.num_ids[passage] for passage in chosen)


def count_answers(records: Records[Conversation]) -> np.ndarray:
    """Return the number of answers of each record, int64[n]."""
    counts = [np.zeros(0, np.int64)]
    for spans, first_spans in records.iter_shard_spans():
        counts.append(np.diff(first_spans, append=len(spans)))
    return np.concatenate(counts)


class DistractorExamples:
    """Conversations with other passages in their references, and a loss on the answers.

    A record is cut after the last answer that fits a row, as without distractors, and the passages
    share what is left of the row. Implements `data.batching.examples.Examples`.
    """

    def __init__(
        self,
        records: Records[Conversation],
        length: int,
        table: PassageTable,
        draw: DistractorDraw,
        encode: Callable[[Conversation], EncodedRecord],
    ) -> None:
        """Find where each record is cut, for rows of `length` positions."""
        self.num_wanted = draw.count
        self._records = records
        self._length = length
        self._table = table
        self._draw = draw
        self._encode = encode
        self._lengths = DistractorLengths(records, table, draw)
        # The ids and answers that each record keeps without distractors.
        num_ids, num_answers = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for spans, first_spans in records.iter_shard_spans():
            kept = AnswerLengths().fit(spans, first_spans, 0, length)
            num_ids.append(kept.num_ids)
            num_answers.append(kept.num_answers)
        self._num_ids = np.concatenate(num_ids)
        self._num_answers = np.concatenate(num_answers)
        is_truncated = (self._num_answers < count_answers(records)) & (self._num_ids > 0)
        self.num_truncated = int(is_truncated.sum())

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the positions of each example, int64[n]; 0: no answer fits a row.

        An example may have a few less, where a token spans two passages.
        """
        num_ids = [
            count and count + self._lengths.count_added(record, count, self._length, epoch)
            for record, count in enumerate(self._num_ids.tolist())
        ]
        # The last id of an example is only a target, and makes no position.
        return np.maximum(np.array(num_ids, np.int64) - 1, 0)

    def mean_passages(self) -> float:
        """Return how many other passages an example of epoch 0 has on average, 0 without any."""
        counts = [
            len(self._draw.choose(record, count, 0, self._length))
            for record, count in enumerate(self._num_ids.tolist())
            if count
        ]
        return sum(counts) / max(len(counts), 1)

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids up to the last answer that is kept, and the loss mask of the answers."""
        record = self._records.record(index)
        own_ids = int(self._num_ids[index])
        chosen = self._draw.choose(index, own_ids, epoch, self._length)
        limit = own_ids + sum(self._table.num_ids[passage] for passage in chosen)
        while True:
            ids, spans = self._encode(self._join(record, index, chosen, epoch))
            spans = spans[: self._num_answers[index]]
            stop = spans[-1][1]
            if stop <= limit or not chosen:
                break
            # An imported tokenizer may need more tokens for a whole than for its parts.
            chosen = chosen[:-1]
        loss_mask = np.zeros(stop, bool)
        for answer_start, answer_stop in spans:
            loss_mask[answer_start:answer_stop] = True
        # The targets are the ids after the first, so the mask of the first id is dropped.
        return np.array(ids[:stop], dtype=np.int64), loss_mask[1:]

    def _join(
        self, record: Conversation, index: int, chosen: list[int], epoch: int
    ) -> Conversation:
        """Return a record with other passages around its own."""
        passages = [
            self._records.record(self._table.first_record(passage)).reference for passage in chosen
        ]
        passages.insert(self._draw.place(index, epoch, len(chosen)), record.reference)
        return replace(record, reference=PASSAGE_SEPARATOR.join(passages))
