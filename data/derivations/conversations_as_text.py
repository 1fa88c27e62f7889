"""Conversations as text to pretrain on: `conversations_as_text(redgpt)`, in the chat template."""

from collections.abc import Iterable, Sequence

from data.derivations.base import Arguments
from data.from_text.without_test_passages import WithoutTestPassages
from data.kinds import conversations, documents
from data.kinds.conversations import ConversationKind
from data.records import Conversation, EncodedRecord, Record, SkippedRecord
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


class ConversationsAsTextKind(ConversationKind):
    """Conversations that are stored as documents: in the chat template, without spans."""

    name = documents.KIND.name
    is_text = True

    def encode(
        self, tokenizer: Tokenizer, template: Template, records: Sequence[Conversation]
    ) -> Sequence[EncodedRecord]:
        """Return the ids of each conversation, to the last answer with a loss, without spans."""
        return [(ids, []) for ids, _spans in super().encode(tokenizer, template, records)]


class ConversationsAsText(WithoutTestPassages[Conversation]):
    """The records of a set of conversations with a loss on every token."""

    name = "conversations_as_text"
    usage = "conversations_as_text(NAME[,TEST_FILE…])"
    description = "conversations in the words of the chat template, as text to pretrain on"
    source_kind = conversations.KIND
    kind = ConversationsAsTextKind()

    def derive(
        self, record: Conversation, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        """Return the record itself; its kind encodes it as text."""
        return [record]


DERIVATION = ConversationsAsText()
