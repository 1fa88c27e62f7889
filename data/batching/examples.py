"""Training examples out of shard sets: the ids of one, and which of its targets have a loss.

An example of n positions is n + 1 ids; its targets are the ids after the first, and `scored` says which of them have a
loss. It must fit in a row; what does not is shortened where that is harmless, or left out, and counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.batching.summary_prompts import CANONICAL, LEAD_INS, Frames, draw, draw_lead_in, encode_summaries, summary_texts
from data.records import Conversation, Kind, Summary
from data.shards import HeldSequences, Sequences
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# An article is not trimmed below this many ids: what is left would say nothing about its title.
ARTICLE_MINIMUM = 32


class Examples(Protocol):
    """One split of one set as examples for rows of a certain length."""

    cut: int  # examples that are shortened to fit (in epoch 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """Positions of each example in an epoch, int64[n]; 0 for one that is left out."""

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int64[positions + 1], and whether each but the first is scored, bool[positions]."""


class Conversations:
    """Conversations, the loss on their answers. One that is too long is cut after the last answer that fits whole."""

    def __init__(self, sequences: Sequences | HeldSequences, length: int) -> None:
        self._sequences = sequences
        whole = sequences.lengths()
        fits = [
            np.maximum.reduceat(np.where(spans[:, 1] <= length + 1, spans[:, 1], 0).astype(np.int64), begins)
            for spans, begins in sequences.span_table() if len(begins)
        ]
        # Ids behind the last answer do not exist, so a conversation that fits ends with its last span.
        self._stops = np.concatenate(fits or [np.zeros(0, np.int64)])
        self.cut = int(((self._stops < whole) & (self._stops > 0)).sum())

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return np.maximum(self._stops - 1, 0)

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        stop = int(self._stops[index])
        scored = np.zeros(stop, bool)
        for start, end in self._sequences.spans(index):
            scored[start : min(int(end), stop)] = start < stop
        return self._sequences.tokens(index, 0, stop).astype(np.int64), scored[1:]


@dataclass(frozen=True)
class Phrasings:
    """How requests are drawn: by this seed, or always the canonical one where it is None; with lead-ins or without."""

    seed: int | None
    lead_ins: bool = False


class Summaries:
    """Articles, a request for their title around them, the title as the answer. An article too long loses its end."""

    def __init__(
        self, sequences: Sequences | HeldSequences, length: int, tokenizer: Tokenizer, template: Template,
        phrasings: Phrasings,
    ) -> None:
        self._sequences, self._length, self._phrasings = sequences, length, phrasings
        self._frames, self._eos = Frames(tokenizer, template), tokenizer.eos_id
        self._lead_ins = tokenizer.encode_within(LEAD_INS, threads=1) if phrasings.lead_ins else [[]]
        # One span a record: where the title begins, the article ends.
        titles = np.concatenate([np.zeros((0, 2), np.int64), *(spans for spans, _ in sequences.span_table())])
        self._articles, self._titles = titles[:, 0], titles[:, 1] - titles[:, 0]
        _, _, room = self._plan(np.arange(len(titles)), 0)
        self.cut = int(((room < self._articles) & (room >= np.minimum(self._articles, ARTICLE_MINIMUM))).sum())

    def _plan(self, indices: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Request and lead-in of each record, and the ids that its article may have."""
        seed = self._phrasings.seed
        requests = np.full(len(indices), CANONICAL) if seed is None else draw(seed, epoch, indices)
        lead_ins = np.zeros(len(indices), np.int64)
        if self._phrasings.lead_ins and seed is not None:
            lead_ins = draw_lead_in(seed, epoch, indices)
        answers = np.array([len(ids) for ids in self._lead_ins])[lead_ins] + self._titles[indices] + 1
        # n positions are n + 1 ids.
        return requests, lead_ins, self._length + 1 - self._frames.lengths[requests] - answers

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        indices = np.arange(len(self._articles))
        _, _, room = self._plan(indices, epoch)
        article = np.minimum(self._articles, room)
        used = self._length - room + article
        return np.where(article >= np.minimum(self._articles, ARTICLE_MINIMUM), used, 0)

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        requests, lead_ins, room = (int(values[0]) for values in self._plan(np.array([index]), epoch))
        stored = self._sequences.tokens(index).tolist()
        article = int(self._articles[index])
        asked = self._frames.prompt(requests, stored[: min(article, room)])
        answer = [*self._lead_ins[lead_ins], *stored[article:], self._eos]
        scored = np.zeros(len(asked) + len(answer), bool)
        scored[len(asked) :] = True
        return np.array(asked + answer, dtype=np.int64), scored[1:]


def examples_of(
    kind: Kind, sequences: Sequences | HeldSequences, length: int, tokenizer: Tokenizer, template: Template,
    phrasings: Phrasings,
) -> Examples:
    """The examples of a split that holds this kind of records."""
    if kind == "summaries":
        return Summaries(sequences, length, tokenizer, template, phrasings)
    if kind == "conversations":
        return Conversations(sequences, length)
    assert isinstance(sequences, Sequences)
    return Texts(sequences, length)


def encode_records(
    records: Iterable[Conversation | Summary], tokenizer: Tokenizer, template: Template
) -> HeldSequences:
    """Records as a shard set of their kind would hold them."""
    held = []
    for record in records:
        if isinstance(record, Summary):
            held += encode_summaries(tokenizer, [summary_texts(template, record)])
        else:
            turns = [(turn.question, turn.answer) for turn in record.turns]
            held.append(template.encode(tokenizer, turns, record.reference))
    return HeldSequences(held)


class Texts:
    """Pretraining text in rows of its own, the loss on all of it: replay against forgetting."""

    cut = 0

    def __init__(self, sequences: Sequences, length: int) -> None:
        self._sequences, self._length = sequences, length
        self._count = max((sequences.total_tokens - 1) // length, 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return np.full(self._count, self._length, np.int64)

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        start = index * self._length
        return self._sequences.stream(start, start + self._length + 1), np.ones(self._length, bool)
