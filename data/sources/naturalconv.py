"""NaturalConv (Wang et al. 2021, arXiv:2103.02548): one JSON list of dialogues, each a list of utterances."""

from data.records import Conversation
from data.sources.base import SchemaError, Source, parse_json_object
from data.sources.dialogue import Speaker, build_conversation

_SPEAKERS: tuple[Speaker, Speaker] = ("human", "assistant")


def parse_naturalconv(data: bytes) -> Conversation:
    """The utterances by turns, the first by the human; in an odd number the first by the assistant, who ends all.

    So nothing of a dialogue is lost. BadRow for an utterance that is no text or is empty.
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
    odd = len(utterances) % 2
    return build_conversation(
        (_SPEAKERS[(place + odd) % 2], text) for place, text in enumerate(utterances)
    )


SOURCE = Source(
    name="naturalconv",
    description="NaturalConv: one JSON list of dialogues, which are lists of utterances",
    parse=parse_naturalconv,
    kind="conversations",
)
