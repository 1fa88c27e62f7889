"""Training examples out of shard sets: the ids of one, and which of its targets have a loss.

An example of n positions is n + 1 ids; its targets are the ids after the first, and `scored` says which of them have a
loss. It must fit in a row; what does not is shortened where that is harmless, or left out, and counted.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from data.batching.summary_prompts import (
    EVAL_REQUEST,
    LEAD_INS,
    EncodedRequests,
    encode_summaries,
    sample_lead_ins,
    sample_requests,
    summary_segments,
)
from data.records import Conversation, Kind, Summary
from data.shards import InMemorySequences, Sequences
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

# An article is not trimmed below this many ids: what is left would say nothing about its title.
MIN_ARTICLE_TOKENS = 32


class Examples(Protocol):
    """One split of one set as examples for rows of a certain length."""

    num_truncated: int  # examples that are shortened to fit (in epoch 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """Positions of each example in an epoch, int64[n]; 0 for one that is left out."""

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids, int64[positions + 1], and whether each but the first is scored, bool[positions]."""


class ConversationExamples:
    """Conversations, the loss on their answers. One that is too long is cut after the last answer that fits whole."""

    def __init__(self, sequences: Sequences | InMemorySequences, length: int) -> None:
        self._sequences = sequences
        whole = sequences.lengths()
        fits = [
            np.maximum.reduceat(
                np.where(spans[:, 1] <= length + 1, spans[:, 1], 0).astype(np.int64), begins
            )
            for spans, begins in sequences.iter_shard_spans()
            if len(begins)
        ]
        # Ids behind the last answer do not exist, so a conversation that fits ends with its last span.
        self._stop_offsets = np.concatenate(fits or [np.zeros(0, np.int64)])
        self.num_truncated = int(((self._stop_offsets < whole) & (self._stop_offsets > 0)).sum())

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return np.maximum(self._stop_offsets - 1, 0)

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        stop = int(self._stop_offsets[index])
        loss_mask = np.zeros(stop, bool)
        for start, end in self._sequences.spans(index):
            loss_mask[start : min(int(end), stop)] = start < stop
        return self._sequences.tokens(index, 0, stop).astype(np.int64), loss_mask[1:]


@dataclass(frozen=True)
class RequestSampling:
    """How requests are drawn: by this seed, or always the canonical one where it is None; with lead-ins or without."""

    seed: int | None
    lead_ins: bool = False


class SummaryExamples:
    """Articles, a request for their title around them, the title as the answer. An article too long loses its end."""

    def __init__(
        self,
        sequences: Sequences | InMemorySequences,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        request_sampling: RequestSampling,
    ) -> None:
        self._sequences, self._length, self._request_sampling = sequences, length, request_sampling
        self._encoded_requests, self._eos_id = (
            EncodedRequests(tokenizer, template),
            tokenizer.eos_id,
        )
        self._lead_ins = (
            tokenizer.encode_continuation(LEAD_INS, num_threads=1)
            if request_sampling.lead_ins
            else [[]]
        )
        # One span a record: where the title begins, the article ends.
        titles = np.concatenate(
            [np.zeros((0, 2), np.int64), *(spans for spans, _ in sequences.iter_shard_spans())]
        )
        self._article_lengths, self._title_lengths = titles[:, 0], titles[:, 1] - titles[:, 0]
        _, _, room = self._plan_prompts(np.arange(len(titles)), 0)
        self.num_truncated = int(
            (
                (room < self._article_lengths)
                & (room >= np.minimum(self._article_lengths, MIN_ARTICLE_TOKENS))
            ).sum()
        )

    def _plan_prompts(
        self, indices: np.ndarray, epoch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Request and lead-in of each record, and the ids that its article may have."""
        seed = self._request_sampling.seed
        requests = (
            np.full(len(indices), EVAL_REQUEST)
            if seed is None
            else sample_requests(seed, epoch, indices)
        )
        lead_ins = np.zeros(len(indices), np.int64)
        if self._request_sampling.lead_ins and seed is not None:
            lead_ins = sample_lead_ins(seed, epoch, indices)
        answers = (
            np.array([len(ids) for ids in self._lead_ins])[lead_ins]
            + self._title_lengths[indices]
            + 1
        )
        # n positions are n + 1 ids.
        return (
            requests,
            lead_ins,
            self._length + 1 - self._encoded_requests.lengths[requests] - answers,
        )

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        indices = np.arange(len(self._article_lengths))
        _, _, budget = self._plan_prompts(indices, epoch)
        article = np.minimum(self._article_lengths, budget)
        positions = self._length - budget + article
        return np.where(
            article >= np.minimum(self._article_lengths, MIN_ARTICLE_TOKENS), positions, 0
        )

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        request, lead_in, budget = (
            int(values[0]) for values in self._plan_prompts(np.array([index]), epoch)
        )
        stored = self._sequences.tokens(index).tolist()
        article_length = int(self._article_lengths[index])
        prompt = self._encoded_requests.prompt(request, stored[: min(article_length, budget)])
        answer = [*self._lead_ins[lead_in], *stored[article_length:], self._eos_id]
        loss_mask = np.zeros(len(prompt) + len(answer), bool)
        loss_mask[len(prompt) :] = True
        return np.array(prompt + answer, dtype=np.int64), loss_mask[1:]


def build_examples(
    kind: Kind,
    sequences: Sequences | InMemorySequences,
    length: int,
    tokenizer: Tokenizer,
    template: Template,
    request_sampling: RequestSampling,
) -> Examples:
    """The examples of a split that holds this kind of records."""
    if kind == "summaries":
        return SummaryExamples(sequences, length, tokenizer, template, request_sampling)
    if kind == "conversations":
        return ConversationExamples(sequences, length)
    assert isinstance(sequences, Sequences)
    return TextExamples(sequences, length)


def encode_records(
    records: Iterable[Conversation | Summary], tokenizer: Tokenizer, template: Template
) -> InMemorySequences:
    """Records as a shard set of their kind would hold them."""
    encoded = []
    for record in records:
        if isinstance(record, Summary):
            encoded += encode_summaries(tokenizer, [summary_segments(template, record)])
        else:
            turns = [(turn.question, turn.answer) for turn in record.turns]
            encoded.append(template.encode(tokenizer, turns, record.reference))
    return InMemorySequences(encoded)


class TextExamples:
    """Pretraining text in rows of its own, the loss on all of it: replay against forgetting."""

    num_truncated = 0

    def __init__(self, sequences: Sequences, length: int) -> None:
        self._sequences, self._length = sequences, length
        self._num_examples = max((sequences.num_tokens - 1) // length, 0)

    def lengths(self, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return np.full(self._num_examples, self._length, np.int64)

    def example(self, index: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Examples`."""
        start = index * self._length
        return self._sequences.read_stream(start, start + self._length + 1), np.ones(
            self._length, bool
        )
