"""Conversations: questions and answers in the words of a chat template, with a loss on the answers.

A conversation is rendered as a whole and then encoded: an imported tokenizer merges characters
across the edges of the template's words, so that the ids of a conversation are not those of its
parts (docs/log.md has the figures).
"""

from collections.abc import Sequence

from data.kinds.base import ChatExample, RecordKind, TextLengths
from data.records import Conversation, EncodedRecord, Turn
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class ConversationKind(RecordKind[Conversation]):
    """Conversations of one or more turns."""

    name = "conversations"
    record_type = Conversation

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Conversation]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each conversation, and the spans of its answers with their `<eos>`.

        Only answers with a loss have spans. The ids end with the last of them: what follows has no
        influence on any loss.
        """
        turns = [_turns_to_last_loss(record) for record in records]
        segments = [
            template.segments(
                [(turn.question, turn.answer) for turn in record_turns],
                record.reference,
                record.system,
            )
            for record, record_turns in zip(records, turns, strict=True)
        ]
        # One thread: preparation already has one process per core.
        encoded = template.encode_batch(tokenizer, segments, num_threads=1)
        return [
            (ids, [span for span, turn in zip(spans, record_turns, strict=True) if turn.has_loss])
            for (ids, spans), record_turns in zip(encoded, turns, strict=True)
        ]

    def text_lengths(self, record: Conversation) -> TextLengths:
        """Return the characters up to the last answer with a loss, and the number of turns."""
        num_characters = len(record.reference) + len(record.system)
        turns = _turns_to_last_loss(record)
        prompts, answers = [], []
        for turn in turns:
            num_characters += len(turn.question)
            if turn.has_loss:
                prompts.append(num_characters)
                answers.append(len(turn.answer))
            num_characters += len(turn.answer)
        return TextLengths(prompts, answers, num_characters, len(turns))

    def chat_example(self, record: Conversation) -> ChatExample | None:
        """Return the reference and its questions; None for a conversation without a reference.

        Without one the questions follow from each other, and the answers cannot be checked.
        """
        if not record.reference:
            return None
        questions = tuple(turn.question for turn in record.turns if turn.question)
        return ChatExample(record.reference, questions)


def _turns_to_last_loss(conversation: Conversation) -> tuple[Turn, ...]:
    """Return the turns up to the last one with a loss."""
    turns = conversation.turns
    num_turns = max(number for number, turn in enumerate(turns, 1) if turn.has_loss)
    return turns[:num_turns]


KIND = ConversationKind()
