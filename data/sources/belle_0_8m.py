"""Belle 0.8M, multi-turn: JSONL whose `instruction` holds all of a dialogue but its last reply, which is `output`."""

from data.records import Conversation
from data.sources.base import BadRow, Hub, Source, row_of, text_of
from data.sources.dialogue import conversation, messages_in


def parse(data: bytes) -> Conversation:
    """The turns of `instruction`, then the last question (with `input`, where there is one) and `output`.

    `output` is the reply whatever it contains, `Human:` included. BadRow if `instruction` ends with a reply.
    """
    row = row_of(data)
    messages = messages_in(text_of(row, "instruction"), alternating=True)
    if messages[-1][0] == "assistant" and messages.pop()[1].strip():
        raise BadRow("field 'instruction' ends with a reply, not with a question")
    if row.get("input") is not None:
        messages.append(("human", text_of(row, "input")))
    return conversation([*messages, ("assistant", text_of(row, "output"))])


SOURCE = Source(
    name="belle-0.8m",
    description="Belle 0.8M multi-turn: JSONL of instruction (Human:, Assistant: … by turns) and output",
    parse=parse,
    kind="conversations",
    hub=Hub("BelleGroup/multiturn_chat_0.8M", "default"),
)
