"""ShareGPT's shape: JSONL, or a JSON list, of `conversations`, which are lists of {"from", "value"}."""

from data.records import Conversation
from data.sources.base import BadRow, Source, row_of, text_of
from data.sources.dialogue import Message, Speaker, conversation, speaker_of

# What a system message says is asked of the assistant: it stands before the first question.
ROLES: dict[str, Speaker] = {
    "human": "human", "user": "human", "system": "human", "gpt": "assistant", "assistant": "assistant",
}


def parse(data: bytes) -> Conversation:
    """The messages as turns, a system text in front of the first question. BadRow for any other role (a tool's)."""
    row = row_of(data)
    said = row.get("conversations")
    if not isinstance(said, list):
        raise BadRow(f"field 'conversations' is {type(said).__name__}, not a list of messages")
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(("human", text_of(row, "system")))
    for number, message in enumerate(said, 1):
        if not isinstance(message, dict):
            raise BadRow(f"message {number} is {type(message).__name__}, not an object")
        speaker = speaker_of(message.get("from"), ROLES, number)
        if not isinstance(text := message.get("value"), str):
            raise BadRow(f"message {number} has no text in 'value'")
        messages.append((speaker, text))
    return conversation(messages)


SOURCE = Source(
    name="sharegpt",
    description="ShareGPT: JSONL or a JSON list of conversations, lists of from and value",
    parse=parse,
    kind="conversations",
)
