"""ShareGPT's schema: JSONL, or a JSON list, of `conversations`, lists of {"from", "value"}."""

from typing import Any

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import Message, Speaker, build_conversation, resolve_speaker

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
    than human, assistant and system, such as a tool, and as `build_conversation` does.
    """
    row = parse_json_object(data)
    raw_messages = row.get("conversations")
    if not isinstance(raw_messages, list):
        raise SchemaError(
            f"field 'conversations' is {type(raw_messages).__name__}, not a list of messages"
        )
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(("system", require_text(row, "system")))
    for number, message in enumerate(raw_messages, 1):
        if not isinstance(message, dict):
            raise SchemaError(f"message {number} is {type(message).__name__}, not an object")
        speaker = resolve_speaker(message.get("from"), SPEAKER_BY_ROLE, number)
        text = message.get("value")
        if not isinstance(text, str):
            raise SchemaError(f"message {number} has no text in 'value'")
        messages.append((speaker, text))
    return build_conversation(messages)


def _has_conversations(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has `conversations` that are a list."""
    return isinstance(row.get("conversations"), list)


SOURCES = (
    Source(
        name="sharegpt",
        description="ShareGPT: JSONL or a JSON list of conversations, lists of from and value",
        parse=parse_sharegpt,
        kind="conversations",
        keys=(frozenset({"conversations"}),),
        recognizes=_has_conversations,
    ),
)
