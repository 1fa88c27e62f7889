"""OpenAI's chat shape: JSONL, or a JSON list, of `messages`, which are lists of {"role", "content"}."""

from typing import Any

from data.records import Conversation
from data.sources.base import BadRow, Source, row_of
from data.sources.dialogue import Message, Speaker, conversation, speaker_of

# What a system or developer message says is asked of the assistant: it stands before the first question.
ROLES: dict[str, Speaker] = {"user": "human", "system": "human", "developer": "human", "assistant": "assistant"}


def parse(data: bytes) -> Conversation:
    """The messages as turns, a system text in front of the first question. BadRow where tools or pictures take part."""
    said = row_of(data).get("messages")
    if not isinstance(said, list):
        raise BadRow(f"field 'messages' is {type(said).__name__}, not a list of messages")
    messages: list[Message] = []
    for number, message in enumerate(said, 1):
        if not isinstance(message, dict):
            raise BadRow(f"message {number} is {type(message).__name__}, not an object")
        speaker = speaker_of(message.get("role"), ROLES, number)
        if message.get("tool_calls") or message.get("function_call"):
            raise BadRow(f"message {number} calls a tool")
        messages.append((speaker, _text(message.get("content"), number)))
    return conversation(messages)


def _text(content: Any, number: int) -> str:
    """A message's text: one string, or a list of parts of the type `text`, a line each."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRow(f"message {number} has no text in 'content'")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise BadRow(f"message {number} has a part that is no text ({kind!r})")
        texts.append(part["text"])
    return "\n".join(texts)


SOURCE = Source(
    name="openai",
    description="OpenAI messages: JSONL or a JSON list of messages, lists of role and content",
    parse=parse,
    kind="conversations",
)
