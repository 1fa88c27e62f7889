"""RedGPT: JSONL of a reference passage and, as one string, a dialogue about it."""

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import build_conversation, split_dialogue
from data.sources.fields import Fields


def parse_redgpt(data: bytes) -> Conversation:
    """Return the turns of the dialogue and the reference.

    Raises SchemaError if either is missing or empty.
    """
    row = parse_json_object(data)
    reference = require_text(row, "reference")
    if not reference.strip():
        raise SchemaError("field 'reference' is empty")
    return build_conversation(split_dialogue(require_text(row, "dialogue")), reference)


FIELDS = Fields(used=frozenset({"reference", "dialogue"}))

SOURCES = (
    Source(
        name="redgpt",
        description="RedGPT: JSONL of a reference and a dialogue of Human: and Assistant: about it",
        parse=parse_redgpt,
        kind="conversations",
        check_fields=FIELDS.check,
        has_passages=True,
        keys=(frozenset({"reference", "dialogue"}),),
    ),
)
