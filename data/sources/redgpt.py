"""RedGPT: JSONL of a reference passage and, as one string, a dialogue about it."""

from data.records import Conversation
from data.sources.base import BadRow, Source, row_of, text_of
from data.sources.dialogue import conversation, messages_in


def parse(data: bytes) -> Conversation:
    """The dialogue's turns with its reference. BadRow without either."""
    row = row_of(data)
    reference = text_of(row, "reference")
    if not reference.strip():
        raise BadRow("field 'reference' is empty")
    return conversation(messages_in(text_of(row, "dialogue")), reference)


SOURCE = Source(
    name="redgpt",
    description="RedGPT: JSONL of a reference and a dialogue of Human: and Assistant: about it",
    parse=parse,
    kind="conversations",
)
