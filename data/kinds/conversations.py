"""Conversations: questions and answers in the words of a chat template, with a loss on the answers.

A conversation is rendered as a whole and then encoded: an imported tokenizer merges characters
across the edges of the template's words, so that the ids of a conversation are not those of its
parts (docs/log.md has the figures).
"""

from collections.abc import Sequence

from data.kinds.base import RecordKind
from data.records import Conversation, EncodedRecord
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class ConversationKind(RecordKind[Conversation]):
    """Conversations of one or more turns."""

    name = "conversations"
    record_type = Conversation

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Conversation]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each conversation, and the spans of its answers with their `<eos>`."""
        segments = [
            template.segments(
                [(turn.question, turn.answer) for turn in record.turns],
                record.reference,
                record.system,
            )
            for record in records
        ]
        # One thread: preparation already has one process per core.
        return template.encode_batch(tokenizer, segments, num_threads=1)


KIND = ConversationKind()
