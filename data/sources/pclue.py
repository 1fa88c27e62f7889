"""pCLUE: JSONL of a task in words (`input`, with its choices and a closing 答案：) and its solution (`target`)."""

from data.records import Conversation
from data.sources.base import Source, row_of, text_of
from data.sources.dialogue import conversation


def parse(data: bytes) -> Conversation:
    """The task and its solution as one turn. `answer_choices` stand in the task's text already and are not read."""
    row = row_of(data)
    return conversation([("human", text_of(row, "input")), ("assistant", text_of(row, "target"))])


SOURCE = Source(
    name="pclue",
    description="pCLUE: JSONL of input and target, many tasks in words",
    parse=parse,
    kind="conversations",
)
