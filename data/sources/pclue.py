"""pCLUE: JSONL of tasks as prompts: `input`, with choices and a closing 答案：, and `target`."""

from data.records import Conversation
from data.sources.base import Source, parse_json_object, require_text
from data.sources.dialogue import build_conversation


def parse_pclue(data: bytes) -> Conversation:
    """Return `input` and `target` as one turn; `input` names the `answer_choices` already."""
    row = parse_json_object(data)
    return build_conversation(
        [("human", require_text(row, "input")), ("assistant", require_text(row, "target"))]
    )


SOURCES = (
    Source(
        name="pclue",
        description="pCLUE: JSONL of input and target, many tasks in words",
        parse=parse_pclue,
        kind="conversations",
        keys=(
            frozenset({"input", "target", "type"}),
            frozenset({"input", "target", "answer_choices"}),
        ),
    ),
)
