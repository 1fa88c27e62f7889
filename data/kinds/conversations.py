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
        """Return the text before each answer and the answer, in turns."""
        turns = [(turn.question, turn.answer) for turn in record.turns]
        return template.segments(turns, record.reference)

    def encode(
        self, tokenizer: Tokenizer, template: Template, rendered: Sequence[Sequence[str]]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each conversation, and the spans of its answers with their `<eos>`."""
        return template.encode_batch(tokenizer, rendered, num_threads=1)

    def examples(
        self,
        sequences: Sequences | InMemorySequences,
        length: int,
        tokenizer: Tokenizer,
        template: Template,
        seed: int | None,
    ) -> Examples:
        """Return one example per conversation."""
        return ConversationExamples(sequences, length)


class ConversationExamples:
    """Conversations with a loss on their answers, cut after the last answer that fits a row."""

    def __init__(self, sequences: Sequences | InMemorySequences, length: int) -> None:
        self._sequences = sequences
        # A conversation ends with its last span, so where it is cut is the end of a span, or 0.
        stops = [np.zeros(0, np.int64)]
        for spans, first_spans in sequences.iter_shard_spans():
            if len(first_spans):
                # A row of n positions holds n + 1 ids.
                fitting_stops = np.where(spans[:, 1] <= length + 1, spans[:, 1], 0)
                stops.append(np.maximum.reduceat(fitting_stops.astype(np.int64), first_spans))
        self._stops = np.concatenate(stops)
        is_truncated = (self._stops < sequences.lengths()) & (self._stops > 0)
        self.num_truncated = int(is_truncated.sum())

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the positions of each example, int64[n]; 0 if no answer of it fits a row."""
        return np.maximum(self._stops - 1, 0)

    def example(self, index: int, epoch: int) -> Example:
        """Return the conversation up to the last answer that fits."""
        stop = int(self._stops[index])
        loss_mask = np.zeros(stop, bool)
        for start, end in self._sequences.spans(index):
            if end <= stop:
                loss_mask[start:end] = True
        return self._sequences.tokens(index, 0, stop).astype(np.int64), loss_mask[1:]


KIND = ConversationKind()
