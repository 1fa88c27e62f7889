"""ShareGPT's schema: JSONL, or a JSON list, of `conversations`, lists of {"from", "value"}.

minimind's files have {"role", "content"} in them, as OpenAI's `messages`.
"""

from typing import Any

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import Message, Speaker, build_conversation, resolve_speaker
from data.sources.fields import MESSAGE_UNSUPPORTED, Fields, has_loss, split_marks
from data.sources.openai_messages import read_messages

SPEAKER_BY_ROLE: dict[str, Speaker] = {
    "human": "human",
    "user": "human",
    "system": "system",
    "gpt": "assistant",
    "assistant": "assistant",
}


def parse_sharegpt(data: bytes) -> Conversation:
    """Return the messages as turns, and the system text: `system`, system messages, or both.

    Raises SchemaError if there is no list of messages, for a message without text, for roles other
    than human, assistant and system, and as `build_conversation` does; SkipRecordError for tools.
    """
    row = parse_json_object(data)
    raw_messages = row.get("conversations")
    if not isinstance(raw_messages, list):
        raise SchemaError(
            f"field 'conversations' is {type(raw_messages).__name__}, not a list of messages"
        )
    return build_conversation(read_any_messages(row, raw_messages))


def read_any_messages(row: dict[str, Any], raw_messages: list[Any]) -> list[Message]:
    """Return the text in `system` and the messages, of from and value or of role and content.

    Raises SchemaError and SkipRecordError as `parse_sharegpt` does.
    """
    if any(isinstance(message, dict) and "role" in message for message in raw_messages):
        return read_messages(row, raw_messages)
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(Message("system", require_text(row, "system")))
    list_marks = split_marks(row, len(raw_messages))
    for number, (message, marks) in enumerate(zip(raw_messages, list_marks, strict=True), 1):
        if not isinstance(message, dict):
            raise SchemaError(f"message {number} is {type(message).__name__}, not an object")
        speaker = resolve_speaker(message.get("from"), SPEAKER_BY_ROLE, number)
        text = message.get("value")
        if not isinstance(text, str):
            raise SchemaError(f"message {number} has no text in 'value'")
        is_trained = speaker != "assistant" or has_loss(
            {**message, **marks}, text, f"message {number}"
        )
        messages.append(Message(speaker, text, is_trained))
    return messages


def _has_conversations(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has `conversations` that are a list."""
    return isinstance(row.get("conversations"), list)


FIELDS = Fields(
    used=frozenset({"conversations", "system"}),
    message_list="conversations",
    messages=Fields(
        used=frozenset({"from", "value", "role", "content"}), unsupported=MESSAGE_UNSUPPORTED
    ),
)

SOURCES = (
    Source(
        name="sharegpt",
        description="ShareGPT, minimind: JSONL or a JSON list of conversations, lists of from and "
        "value, or role and content",
        parse=parse_sharegpt,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"conversations"}),),
        recognizes=_has_conversations,
    ),
)
