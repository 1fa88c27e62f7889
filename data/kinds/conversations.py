"""Conversations: questions and answers in the words of a chat template, with a loss on the answers.

The template is applied where a record is encoded, and not where an example is assembled: an
imported tokenizer merges characters across the edges of the template's words, so that the ids of a
conversation are not those of its parts (docs/log.md has the figures).
"""

from collections.abc import Sequence

import numpy as np

from data.batching.examples import Example, Examples
from data.kinds.base import RecordKind
from data.records import Conversation
from data.sequences import EncodedRecord, InMemorySequences, Sequences
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class ConversationKind(RecordKind[Conversation]):
    """Conversations of one or more turns."""

    name = "conversations"
    record_type = Conversation
    is_templated = True

    def render(self, template: Template, record: Conversation) -> list[str]:
        """Return the texts of a conversation, alternating: text before an answer, the answer."""
        turns = [(turn.question, turn.answer) for turn in record.turns]
        return template.segments(turns, record.reference)

    def encode(
        self, tokenizer: Tokenizer, template: Template, rendered: Sequence[Sequence[str]]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each conversation, and the spans of its answers with their `<eos>`."""
        # One thread: preparation already has one process per core.
        return template.encode_batch(tokenizer, rendered, num_threads=1)

    def examples(
        self,
        sequences: Sequences | InMemorySequences,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return one example per conversation, for rows of `length` positions."""
        return ConversationExamples(sequences, length)


class ConversationExamples:
    """Conversations with a loss on their answers, cut after the last answer that fits a row."""

    def __init__(self, sequences: Sequences | InMemorySequences, length: int) -> None:
        """Find where each conversation is cut, for rows of `length` positions."""
        self._sequences = sequences
        # Number of ids that each conversation keeps. A conversation ends with its last answer, so
        # this is the end of an answer's span, or 0 if not even the first answer fits.
        stops = [np.zeros(0, np.int64)]
        for spans, first_spans in sequences.iter_shard_spans():
            if len(first_spans):
                # A row of n positions holds n + 1 ids: n inputs, and the targets one further on.
                fitting_stops = np.where(spans[:, 1] <= length + 1, spans[:, 1], 0)
                # The largest fitting stop among the spans of each conversation.
                stops.append(np.maximum.reduceat(fitting_stops.astype(np.int64), first_spans))
        self._stops = np.concatenate(stops)
        is_truncated = (self._stops < sequences.lengths()) & (self._stops > 0)
        self.num_truncated = int(is_truncated.sum())

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the positions of each example, int64[n]; 0 if not even its first answer fits."""
        # n + 1 ids make n positions.
        return np.maximum(self._stops - 1, 0)

    def example(self, index: int, epoch: int) -> Example:
        """Return the ids up to the last answer that fits, and the loss mask of the answers."""
        stop = int(self._stops[index])
        loss_mask = np.zeros(stop, bool)
        for answer_start, answer_stop in self._sequences.spans(index):
            if answer_stop <= stop:
                loss_mask[answer_start:answer_stop] = True
        # The targets are the ids after the first, so the mask of the first id is dropped.
        return self._sequences.tokens(index, 0, stop).astype(np.int64), loss_mask[1:]


KIND = ConversationKind()
