"""pCLUE: JSONL of tasks as prompts: `input`, with choices and a closing 答案：, and `target`."""

from data.records import Conversation
from data.sources.base import Source, parse_json_object, require_text
from data.sources.dialogue import Message, build_conversation
from data.sources.fields import Fields


def parse_pclue(data: bytes) -> Conversation:
    """Return `input` and `target` as one turn; `input` names the `answer_choices` already."""
    row = parse_json_object(data)
    return build_conversation(
        [
            Message("human", require_text(row, "input")),
            Message("assistant", require_text(row, "target")),
        ]
    )


# `input` names the choices.
FIELDS = Fields(used=frozenset({"input", "target", "answer_choices"}))

SOURCES = (
    Source(
        name="pclue",
        description="pCLUE: JSONL of input and target, many tasks in words",
        parse=parse_pclue,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(
            frozenset({"input", "target", "type"}),
            frozenset({"input", "target", "answer_choices"}),
        ),
    ),
)
