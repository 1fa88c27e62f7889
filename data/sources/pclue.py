"""pCLUE: JSONL of a task in words (`input`, with its choices and a closing 答案：) and its solution (`target`)."""

from data.records import Conversation
from data.sources.base import Source, parse_json_object, require_text
from data.sources.dialogue import build_conversation


def parse_pclue(data: bytes) -> Conversation:
    """The task and its solution as one turn. `answer_choices` stand in the task's text already and are not read."""
    row = parse_json_object(data)
    return build_conversation(
        [("human", require_text(row, "input")), ("assistant", require_text(row, "target"))]
    )


SOURCE = Source(
    name="pclue",
    description="pCLUE: JSONL of input and target, many tasks in words",
    parse=parse_pclue,
    kind="conversations",
)
