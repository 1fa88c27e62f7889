"""NaturalConv (Wang et al. 2021, arXiv:2103.02548): one JSON list of dialogues, each a list of utterances."""

from data.records import Conversation
from data.sources.base import BadRow, Source, row_of
from data.sources.dialogue import Speaker, conversation

_SPEAKERS: tuple[Speaker, Speaker] = ("human", "assistant")


def parse(data: bytes) -> Conversation:
    """The utterances by turns, the first by the human; in an odd number the first by the assistant, who ends all.

    So nothing of a dialogue is lost. BadRow for an utterance that is no text or is empty.
    """
    row = row_of(data)
    utterances = row.get("content")
    if not isinstance(utterances, list):
        raise BadRow(f"field 'content' is {type(utterances).__name__}, not a list of utterances")
    if not utterances:
        raise BadRow("field 'content' is empty: there are no utterances")
    for number, text in enumerate(utterances, 1):
        if not isinstance(text, str):
            raise BadRow(f"utterance {number} is {type(text).__name__}, not text")
    odd = len(utterances) % 2
    return conversation((_SPEAKERS[(place + odd) % 2], text) for place, text in enumerate(utterances))


SOURCE = Source(
    name="naturalconv",
    description="NaturalConv: one JSON list of dialogues, which are lists of utterances",
    parse=parse,
    kind="conversations",
)
