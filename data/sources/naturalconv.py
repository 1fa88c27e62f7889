"""NaturalConv (Wang et al. 2021, arXiv:2103.02548): one JSON list of dialogues."""

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object
from data.sources.dialogue import Message, Speaker, build_conversation
from data.sources.fields import Fields

_SPEAKERS: tuple[Speaker, Speaker] = ("human", "assistant")


def parse_naturalconv(data: bytes) -> Conversation:
    """Return the utterances as turns of a human and an assistant, who speaks last.

    The data set does not name its speakers. The human therefore speaks first if the number of
    utterances is even, the assistant if it is odd, so that no utterance is left out. Raises
    SchemaError for an utterance that is empty or not text.
    """
    row = parse_json_object(data)
    utterances = row.get("content")
    if not isinstance(utterances, list):
        raise SchemaError(
            f"field 'content' is {type(utterances).__name__}, not a list of utterances"
        )
    if not utterances:
        raise SchemaError("field 'content' is empty: there are no utterances")
    for number, text in enumerate(utterances, 1):
        if not isinstance(text, str):
            raise SchemaError(f"utterance {number} is {type(text).__name__}, not text")
    # An index of `_SPEAKERS`: 0 is the human.
    first_speaker = len(utterances) % 2
    return build_conversation(
        Message(_SPEAKERS[(first_speaker + index) % 2], text)
        for index, text in enumerate(utterances)
    )


FIELDS = Fields(used=frozenset({"content"}))

SOURCES = (
    Source(
        name="naturalconv",
        description="NaturalConv: one JSON list of dialogues, which are lists of utterances",
        parse=parse_naturalconv,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"dialog_id", "content"}),),
    ),
)
