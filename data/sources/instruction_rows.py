"""The shape of Alpaca, which Belle 0.5M and deepctrl share: an instruction, its input and the output, after a history.

Both the instruction and its input count. Some copies of Belle name question and answer `input` and `target`.
"""

from typing import Any

from data.records import Conversation
from data.sources.base import SchemaError, parse_json_object, require_text
from data.sources.dialogue import Message, build_conversation

_QUESTION_FIELDS = ("system", "instruction", "input")


def parse_alpaca(data: bytes) -> Conversation:
    """The turns of the history, then the system text, the instruction and the input, a line each, with the output."""
    row = parse_json_object(data)
    if not {"instruction", "input"} & row.keys():
        raise SchemaError(
            f"there is no field 'instruction' or 'input'; there are: {', '.join(list(row)[:12]) or 'none'}"
        )
    messages = _parse_history(row.get("history"))
    messages += [
        ("human", require_text(row, field))
        for field in _QUESTION_FIELDS
        if row.get(field) is not None
    ]
    answer = require_text(row, "target" if "target" in row and "output" not in row else "output")
    return build_conversation([*messages, ("assistant", answer)])


def _parse_history(value: Any) -> list[Message]:
    messages: list[Message] = []
    if value is not None and not isinstance(value, list):
        raise SchemaError(f"field 'history' is {type(value).__name__}, not a list")
    for number, pair in enumerate(value or (), 1):
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(text, str) for text in pair)
        ):
            raise SchemaError(f"history {number} is not a pair of texts, a question and its answer")
        messages += [("human", pair[0]), ("assistant", pair[1])]
    return messages
