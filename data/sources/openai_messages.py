"""OpenAI's chat schema: JSONL, or a JSON list, of `messages`, lists of {"role", "content"}."""

from typing import Any

from data.records import Conversation
from data.sources.base import (
    SchemaError,
    SkipRecordError,
    Source,
    parse_json_object,
    require_text,
)
from data.sources.dialogue import Message, Speaker, build_conversation, resolve_speaker
from data.sources.fields import (
    MESSAGE_UNSUPPORTED,
    UNSUPPORTED_CONTENT,
    Fields,
    has_loss,
    split_marks,
)

# Newer models call a system message a developer message.
SPEAKER_BY_ROLE: dict[str, Speaker] = {
    "user": "human",
    "system": "system",
    "developer": "system",
    "assistant": "assistant",
}
# OpenAI's two interfaces differ in the names of a part that is text.
_TEXT_CONTENT = ("text", "input_text", "output_text")


def parse_openai(data: bytes) -> Conversation:
    """Return the messages as turns, and the system text: `system`, system messages, or both.

    Raises SchemaError if there is no list of messages, for content without text, for unknown roles,
    and as `build_conversation` does; SkipRecordError for the content and the roles of other media
    and of tools.
    """
    row = parse_json_object(data)
    raw_messages = row.get("messages")
    if not isinstance(raw_messages, list):
        raise SchemaError(
            f"field 'messages' is {type(raw_messages).__name__}, not a list of messages"
        )
    return build_conversation(read_messages(row, raw_messages))


def read_messages(row: dict[str, Any], raw_messages: list[Any]) -> list[Message]:
    """Return the text in `system` and the messages {"role", "content"}; see `parse_openai`."""
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(Message("system", require_text(row, "system")))
    list_marks = split_marks(row, len(raw_messages))
    for number, (message, marks) in enumerate(zip(raw_messages, list_marks, strict=True), 1):
        if not isinstance(message, dict):
            raise SchemaError(f"message {number} is {type(message).__name__}, not an object")
        speaker = resolve_speaker(message.get("role"), SPEAKER_BY_ROLE, number)
        text = _message_text(message.get("content"), number)
        is_trained = speaker != "assistant" or has_loss(
            {**message, **marks}, text, f"message {number}"
        )
        messages.append(Message(speaker, text, is_trained))
    return messages


def _message_text(content: Any, number: int) -> str:
    """Return the text of message `number`: a string, or parts that are text, one line each.

    A part names its type, or has it as its only key. Raises SkipRecordError for parts of another
    type, such as an image, and SchemaError for anything else.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise SchemaError(f"message {number} has no text in 'content'")
    texts = []
    for part in content:
        is_object = isinstance(part, dict)
        part_type = part.get("type", next(iter(part), None)) if is_object else type(part).__name__
        if isinstance(part_type, str) and part_type in UNSUPPORTED_CONTENT:
            raise SkipRecordError(f"unsupported content {part_type}")
        if part_type not in _TEXT_CONTENT or not isinstance(part.get("text"), str):
            raise SchemaError(f"message {number} has a part that is not text ({part_type!r})")
        texts.append(part["text"])
    return "\n".join(texts)


def _has_messages(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has `messages` that are a list."""
    return isinstance(row.get("messages"), list)


FIELDS = Fields(
    used=frozenset({"messages", "system"}),
    message_list="messages",
    messages=Fields(used=frozenset({"role", "content"}), unsupported=MESSAGE_UNSUPPORTED),
)

SOURCES = (
    Source(
        name="openai",
        description="OpenAI messages: JSONL or a JSON list of messages, lists of role and content",
        parse=parse_openai,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"messages"}),),
        recognizes=_has_messages,
    ),
)
