"""The ids that an answer continues, cut to the room there is."""

from dataclasses import dataclass

from chat.serve.errors import ProtocolError
from chat.serve.protocol import Talk
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """The ids before an answer, and how many of the oldest turns had no room among them."""

    ids: list[int]
    dropped: int


def fit(tokenizer: Tokenizer, template: Template, talk: Talk, room: int) -> Prompt:
    """The prompt with the most of the newest turns that `room` ids hold. ProtocolError if they hold not even the question.

    Grown from the question backwards: of a conversation of any length, little more is encoded than what fits.
    """
    def ids(turns: int) -> list[int]:
        return template.prompt(tokenizer, talk.turns[len(talk.turns) - turns :], talk.question, talk.reference)

    found, kept = ids(0), 0
    if len(found) > room:
        raise ProtocolError(
            400, f"the reference and the question are {len(found)} tokens; this model has room for {room}: shorten them",
            param="messages", code="context_length_exceeded")
    while kept < len(talk.turns) and len(longer := ids(kept + 1)) <= room:
        found, kept = longer, kept + 1
    return Prompt(found, len(talk.turns) - kept)
