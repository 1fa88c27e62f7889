"""The shape of Alpaca, which Belle 0.5M and deepctrl share: an instruction, its input and the output, after a history.

Both the instruction and its input count. Some copies of Belle name question and answer `input` and `target`.
"""

from typing import Any

from data.records import Conversation
from data.sources.base import BadRow, row_of, text_of
from data.sources.dialogue import Message, conversation

_ASKED = ("system", "instruction", "input")


def parse(data: bytes) -> Conversation:
    """The turns of the history, then the system text, the instruction and the input, a line each, with the output."""
    row = row_of(data)
    if not {"instruction", "input"} & row.keys():
        raise BadRow(f"there is no field 'instruction' or 'input'; there are: {', '.join(list(row)[:12]) or 'none'}")
    messages = _history(row.get("history"))
    messages += [("human", text_of(row, field)) for field in _ASKED if row.get(field) is not None]
    answer = text_of(row, "target" if "target" in row and "output" not in row else "output")
    return conversation([*messages, ("assistant", answer)])


def _history(value: Any) -> list[Message]:
    messages: list[Message] = []
    if value is not None and not isinstance(value, list):
        raise BadRow(f"field 'history' is {type(value).__name__}, not a list")
    for number, pair in enumerate(value or (), 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise BadRow(f"history {number} is not a pair of texts, a question and its answer")
        messages += [("human", pair[0]), ("assistant", pair[1])]
    return messages
