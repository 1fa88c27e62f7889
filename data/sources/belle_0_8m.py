"""Belle 0.8M, multi-turn: JSONL whose `instruction` holds all of a dialogue but its last reply, which is `output`."""

from data.records import Conversation
from data.sources.base import HubDataset, SchemaError, Source, parse_json_object, require_text
from data.sources.dialogue import build_conversation, split_dialogue


def parse_belle_0_8m(data: bytes) -> Conversation:
    """The turns of `instruction`, then the last question (with `input`, where there is one) and `output`.

    `output` is the reply whatever it contains, `Human:` included. BadRow if `instruction` ends with a reply.
    """
    row = parse_json_object(data)
    messages = split_dialogue(require_text(row, "instruction"), alternating=True)
    if messages[-1][0] == "assistant" and messages.pop()[1].strip():
        raise SchemaError("field 'instruction' ends with a reply, not with a question")
    if row.get("input") is not None:
        messages.append(("human", require_text(row, "input")))
    return build_conversation([*messages, ("assistant", require_text(row, "output"))])


SOURCE = Source(
    name="belle-0.8m",
    description="Belle 0.8M multi-turn: JSONL of instruction (Human:, Assistant: … by turns) and output",
    parse=parse_belle_0_8m,
    kind="conversations",
    hub=HubDataset("BelleGroup/multiturn_chat_0.8M", "default"),
)
