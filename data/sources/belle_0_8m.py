"""Belle 0.8M, multi-turn: JSONL of `instruction`, a dialogue up to its last reply, and `output`."""

from typing import Any

from data.readers.hub import HubDataset
from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import Message, build_conversation, split_dialogue
from data.sources.fields import Fields


def parse_belle_0_8m(data: bytes) -> Conversation:
    """Return the turns of `instruction`, whose last question `input` continues, and `output`.

    `output` is the last answer; it is one reply even if it contains `Human:`. Raises SchemaError if
    `instruction` ends with a reply, or if a field is missing or not text.
    """
    row = parse_json_object(data)
    messages = split_dialogue(require_text(row, "instruction"), alternating=True)
    if messages[-1].speaker == "assistant":
        # `instruction` ends with an empty `Assistant:`, whose text is `output`.
        last_reply = messages.pop().text
        if last_reply.strip():
            raise SchemaError("field 'instruction' ends with a reply, not with a question")
    if row.get("input") is not None:
        messages.append(Message("human", require_text(row, "input")))
    messages.append(Message("assistant", require_text(row, "output")))
    return build_conversation(messages)


def _is_belle_0_8m(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether a file with this first record is Belle 0.8M rather than 0.5M.

    Both have the same keys, but only the instructions of 0.8M are dialogues.
    """
    return str(row.get("instruction", "")).startswith("Human:")


FIELDS = Fields(used=frozenset({"instruction", "input", "output"}))

SOURCES = (
    Source(
        name="belle-0.8m",
        description="Belle 0.8M multi-turn: JSONL of instruction (Human:, Assistant: …) and output",
        parse=parse_belle_0_8m,
        kind="conversations",
        check_fields=FIELDS.check,
        hub=HubDataset("BelleGroup/multiturn_chat_0.8M", "default"),
        keys=(frozenset({"instruction", "input", "output"}),),
        recognizes=_is_belle_0_8m,
    ),
)
