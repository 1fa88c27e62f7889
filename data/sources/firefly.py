"""Firefly's schema: JSONL of `conversation`, a list of {"human", "assistant"} turns."""

from typing import Any

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import Message, build_conversation
from data.sources.fields import Fields, has_loss, split_marks


def parse_firefly(data: bytes) -> Conversation:
    """Return the turns, and the system text.

    Raises SchemaError if there is no list of turns, or if a text is missing or not text.
    """
    row = parse_json_object(data)
    turns = row.get("conversation")
    if not isinstance(turns, list):
        raise SchemaError(f"field 'conversation' is {type(turns).__name__}, not a list of turns")
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(Message("system", require_text(row, "system")))
    list_marks = split_marks(row, len(turns))
    for number, (turn, marks) in enumerate(zip(turns, list_marks, strict=True), 1):
        if not isinstance(turn, dict):
            raise SchemaError(f"turn {number} is {type(turn).__name__}, not an object")
        answer = require_text(turn, "assistant")
        messages += [
            Message("human", require_text(turn, "human")),
            Message("assistant", answer, has_loss({**turn, **marks}, answer, f"turn {number}")),
        ]
    return build_conversation(messages)


def _has_turns(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has turns of human and assistant."""
    turns = row.get("conversation")
    return isinstance(turns, list) and all(
        isinstance(turn, dict) and turn.keys() >= {"human", "assistant"} for turn in turns
    )


FIELDS = Fields(
    used=frozenset({"conversation", "system"}),
    message_list="conversation",
    messages=Fields(used=frozenset({"human", "assistant"})),
)

SOURCES = (
    Source(
        name="firefly",
        description="Firefly: JSONL of conversation, a list of human and assistant",
        parse=parse_firefly,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"conversation"}),),
        recognizes=_has_turns,
    ),
)
