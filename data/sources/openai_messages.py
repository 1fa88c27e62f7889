"""OpenAI's chat schema: JSONL, or a JSON list, of `messages`, lists of {"role", "content"}."""

from typing import Any

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object
from data.sources.dialogue import Message, Speaker, build_conversation, resolve_speaker

# Newer models call a system message a developer message.
SPEAKER_BY_ROLE: dict[str, Speaker] = {
    "user": "human",
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
}


def parse_openai(data: bytes) -> Conversation:
    """Return the messages as turns, and the system text.

    Raises SchemaError if there is no list of messages, for tool calls, for content other than text,
    for unknown roles, and as `build_conversation` does.
    """
    raw_messages = parse_json_object(data).get("messages")
    if not isinstance(raw_messages, list):
        raise SchemaError(
            f"field 'messages' is {type(raw_messages).__name__}, not a list of messages"
        )
    messages: list[Message] = []
    for number, message in enumerate(raw_messages, 1):
        if not isinstance(message, dict):
            raise SchemaError(f"message {number} is {type(message).__name__}, not an object")
        speaker = resolve_speaker(message.get("role"), SPEAKER_BY_ROLE, number)
        if message.get("tool_calls") or message.get("function_call"):
            raise SchemaError(f"message {number} calls a tool")
        messages.append((speaker, _message_text(message.get("content"), number)))
    return build_conversation(messages)


def _message_text(content: Any, number: int) -> str:
    """Return the text of message `number`: a string, or parts of the type `text`, one line each.

    Raises SchemaError for anything else, such as an image.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SchemaError(f"message {number} has no text in 'content'")
    texts = []
    for part in content:
        part_type = part.get("type") if isinstance(part, dict) else type(part).__name__
        if part_type != "text" or not isinstance(part.get("text"), str):
            raise SchemaError(f"message {number} has a part that is not text ({part_type!r})")
        texts.append(part["text"])
    return "\n".join(texts)


def _has_messages(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has `messages` that are a list."""
    return isinstance(row.get("messages"), list)


SOURCES = (
    Source(
        name="openai",
        description="OpenAI messages: JSONL or a JSON list of messages, lists of role and content",
        parse=parse_openai,
        kind="conversations",
        keys=(frozenset({"messages"}),),
        recognizes=_has_messages,
    ),
)
