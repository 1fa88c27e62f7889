"""Datasets in Alpaca's schema: an instruction, its input, the output, in some a history of turns.

Both the instruction and its input belong to the question. Some copies of Belle call question and
answer `input` and `target`, ms-swift calls them `query` and `response`.
"""

from typing import Any

from data.readers.hub import HubDataset
from data.records import Conversation
from data.sources.base import SchemaError, Source, list_keys, parse_json_object, require_text
from data.sources.dialogue import Message, build_conversation
from data.sources.fields import Fields, has_loss, split_marks

QUESTION_FIELDS = ("instruction", "input", "query")
_ANSWER_FIELDS = ("output", "target", "response")


def parse_alpaca(data: bytes) -> Conversation:
    """Return the turns of the history, then one of the instruction, input and output.

    The last question is the instruction and the input, one line each. A system text is for the
    whole conversation. A list of marks has one for each text of the history, the question and the
    answer. Raises SchemaError if a field is missing or not text, or if there are several answers.
    """
    row = parse_json_object(data)
    if not {"instruction", "input", "query"} & row.keys():
        raise SchemaError(
            f"there is no field 'instruction' or 'input'; there are: {list_keys(row)}"
        )
    answer_fields = [field for field in _ANSWER_FIELDS if row.get(field) is not None]
    if len(answer_fields) > 1:
        raise SchemaError(f"there are several answers: {', '.join(answer_fields)}")
    messages: list[Message] = []
    if row.get("system") is not None:
        messages.append(Message("system", require_text(row, "system")))
    history = parse_history(row.get("history"))
    *history_marks, _, answer_marks = split_marks(row, len(history) + 2)
    for number, (message, marks) in enumerate(zip(history, history_marks, strict=True)):
        is_trained = message.speaker == "human" or has_loss(marks, "", f"history {number // 2 + 1}")
        messages.append(message._replace(has_loss=is_trained))
    for field in QUESTION_FIELDS:
        if row.get(field) is not None:
            messages.append(Message("human", require_text(row, field)))
    # Without an answer, the error names `output`.
    answer_field = answer_fields[0] if answer_fields else "output"
    is_trained = has_loss(answer_marks, "", "the answer")
    messages.append(Message("assistant", require_text(row, answer_field), is_trained))
    # Consecutive messages of the human are joined there, one line each.
    return build_conversation(messages)


def parse_history(history: Any) -> list[Message]:
    """Return the messages of `history`, a list of [question, answer] pairs or None.

    Raises SchemaError if it is anything else.
    """
    messages: list[Message] = []
    if history is not None and not isinstance(history, list):
        raise SchemaError(f"field 'history' is {type(history).__name__}, not a list")
    for number, pair in enumerate(history or (), 1):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(text, str) for text in pair):
            raise SchemaError(f"history {number} is not a pair of texts, a question and its answer")
        messages += [Message("human", pair[0]), Message("assistant", pair[1])]
    return messages


def _is_alpaca(row: dict[str, Any], is_list: bool) -> bool:
    """Return whether a file with this first record is Alpaca rather than Belle or deepctrl."""
    # Two outputs are a pair of answers, the better one first.
    if isinstance(row.get("output"), list):
        return False
    # Belle and deepctrl are JSONL with a field `input` in every record.
    return is_list or "input" not in row


FIELDS = Fields(
    used=frozenset({"system", *QUESTION_FIELDS, *_ANSWER_FIELDS, "history"}),
    message_list="history",
)

SOURCES = (
    Source(
        name="alpaca",
        description="Alpaca: a JSON list or JSONL of instruction, input, output",
        parse=parse_alpaca,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"instruction", "output"}),),
        recognizes=_is_alpaca,
    ),
    Source(
        name="belle-0.5m",
        description="Belle 0.5M: JSONL of instruction, input, output (copies: input, target)",
        parse=parse_alpaca,
        kind="conversations",
        check_fields=FIELDS.check,
        hub=HubDataset("BelleGroup/train_0.5M_CN", "default"),
        keys=(
            frozenset({"instruction", "input", "output"}),
            frozenset({"instruction", "input", "target"}),
            frozenset({"input", "target"}),
        ),
    ),
    Source(
        name="deepctrl",
        description="deepctrl-sft-data: JSONL of instruction, input, output, history",
        parse=parse_alpaca,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"instruction", "input", "output", "history"}),),
    ),
    Source(
        name="ms-swift",
        description="ms-swift: JSONL of query, response, history",
        parse=parse_alpaca,
        kind="conversations",
        check_fields=FIELDS.check,
        keys=(frozenset({"query", "response"}),),
    ),
)
