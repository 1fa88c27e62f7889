"""Preference pairs: two answers to the same question, `chosen` and `rejected`.

The schemas of others differ in where the question is and in the form of the answers:

    TRL            `prompt`, and the two answers; or two whole conversations (also minimind)
    LLaMA-Factory  `conversations` up to the question, and the two answers
    Alpaca         `instruction`, `input`, `history`, and the two answers; or two in `output`
    hh-rlhf        two whole conversations, as texts with \\n\\nHuman: and \\n\\nAssistant:

An answer or a conversation is a text, a message, or a list of messages, and messages have `from`
and `value` or `role` and `content`. Of two whole conversations the prompt is all messages but the
last: what two answers have in common stays in both.
"""

import re
from typing import Any

from data.records import Preference, Turn
from data.sources.alpaca_shape import QUESTION_FIELDS, parse_history
from data.sources.base import (
    SchemaError,
    SkipRecordError,
    Source,
    list_keys,
    parse_json_object,
    require_text,
    strip_blank_lines,
)
from data.sources.dialogue import Message, Speaker, split_system
from data.sources.fields import (
    MESSAGE_UNSUPPORTED,
    NOTHING_TO_TRAIN,
    UNPAIRED_CURE,
    UNSUPPORTED,
    Fields,
    is_unpaired,
)
from data.sources.sharegpt import read_any_messages

_ANSWERS = ("chosen", "rejected")
_MESSAGE_LISTS = ("prompt", "conversations", "messages", *_ANSWERS)
# Scores of the two answers, by the names that others give them.
_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
# The reasons to leave a pair out.
EMPTY_ANSWER = "empty answer"
EQUAL_ANSWERS = "equal answers"
TIE = "tie: equal scores"
CONTRADICTION = "rejected scored above chosen"
OTHER_PROMPT = "conversations that differ before the last answer"
# A turn mark of hh-rlhf. The first of a text may lack the empty line before it.
_MARK = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant)[:：] ?")
# Copies of hh-rlhf that are cut into prompt and answer leave it with the answer.
_SPACE_AFTER_MARK = re.compile(r"\A (?=\S)")


def parse_preference(data: bytes) -> Preference:
    """Return the two answers and what they answer.

    `system`, `history` and `passage`, a text that the question is about, come before the question.
    `rejected_is_cut` is as in `Preference`.
    Raises SchemaError if question or answers are missing or are none, and SkipRecordError for a
    pair that says nothing: an empty answer, equal answers, a tie by the scores in the record,
    scores that contradict the order, or conversations that differ before their last answers.
    """
    row = parse_json_object(data)
    answers = [_read_messages(value, name) for name, value in _raw_answers(row).items()]
    before: list[Message] = []
    if row.get("system") is not None:
        before.append(Message("system", require_text(row, "system")))
    before += parse_history(row.get("history"))
    are_whole = [answer[0].speaker != "assistant" for answer in answers]
    if are_whole[0] != are_whole[1]:
        raise SchemaError("only one of 'chosen' and 'rejected' includes the question")
    if not any(are_whole):
        before += _read_prompt(row)
    (system, chosen), (other_system, rejected) = (
        split_system(before + answer) for answer in answers
    )
    for name, messages in zip(_ANSWERS, (chosen, rejected), strict=True):
        _check_answer(messages, name)
    if system != other_system or _texts(chosen[:-1]) != _texts(rejected[:-1]):
        raise SkipRecordError(OTHER_PROMPT)
    if all(are_whole):
        _check_prompt(row, chosen)
    _check_pair(row, chosen[-1].text, rejected[-1].text)
    turns = _build_turns(chosen[:-1], has_system=bool(system))
    passage = strip_blank_lines(require_text(row, "passage")) if row.get("passage") else ""
    question = turns.pop().question
    is_cut = row.get("rejected_is_cut") or False
    if not isinstance(is_cut, bool):
        raise SchemaError("'rejected_is_cut' is neither true nor false")
    return Preference(
        tuple(turns), question, chosen[-1].text, rejected[-1].text, passage, system, is_cut
    )


def _raw_answers(row: dict[str, Any]) -> dict[str, Any]:
    """Return `chosen` and `rejected`, or the two answers in `output`, as they are in the record.

    Raises SchemaError if there are not two.
    """
    output = row.get("output")
    if isinstance(output, list) and len(output) == 2:
        return dict(zip(_ANSWERS, output, strict=True))
    for name in _ANSWERS:
        if row.get(name) is None:
            raise SchemaError(f"there is no {name!r}; there are: {list_keys(row)}")
    return {name: row[name] for name in _ANSWERS}


def _read_messages(value: Any, name: str, speaker: Speaker = "assistant") -> list[Message]:
    """Return the messages of an answer, a prompt or a conversation, at least one.

    A text is a dialogue if it begins with a turn mark of hh-rlhf, else one message of `speaker`.
    `name` is the field. Raises SchemaError for any other value.
    """
    if isinstance(value, str):
        return _split_marks(value) or [Message(speaker, _SPACE_AFTER_MARK.sub("", value))]
    raw_messages = [value] if isinstance(value, dict) else value
    if not isinstance(raw_messages, list) or not raw_messages:
        raise SchemaError(f"field {name!r} is neither text nor messages")
    try:
        return read_any_messages({}, raw_messages)
    except SchemaError as error:
        raise SchemaError(f"field {name!r}: {error}") from None


def _split_marks(text: str) -> list[Message]:
    """Return the messages of a text in the form of hh-rlhf; none if it has another form."""
    matches = list(_MARK.finditer(text))
    speakers = {match[1] for match in matches}
    if len(speakers) < 2 or matches[0].start() > 0:
        return []
    # The text of a message ends where the next mark begins.
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [
        Message("human" if match[1] == "Human" else "assistant", text[match.end() : end])
        for match, end in zip(matches, ends, strict=True)
    ]


def _read_prompt(row: dict[str, Any]) -> list[Message]:
    """Return the messages up to the question that the answers of a record are to.

    Raises SchemaError if there is no prompt or more than one, or if it ends with an answer.
    """
    names = [name for name in ("prompt", "conversations", "messages") if row.get(name) is not None]
    texts = [name for name in QUESTION_FIELDS if row.get(name) is not None]
    if not names and not texts:
        raise SchemaError(
            "'chosen' and 'rejected' are answers without a question: give it as 'prompt', or give "
            "whole conversations, as messages or with \\n\\nHuman: and \\n\\nAssistant:"
        )
    if len(names) > 1 or (names and texts):
        raise SchemaError(f"there are several prompts: {', '.join(names + texts)}")
    if texts:
        return [Message("human", require_text(row, name)) for name in texts]
    messages = _read_messages(row[names[0]], names[0], "human")
    # A prompt of hh-rlhf ends with the mark of the answer.
    if messages[-1].speaker == "assistant" and not messages[-1].text.strip():
        messages.pop()
    if not messages or messages[-1].speaker != "human":
        raise SchemaError(f"field {names[0]!r} does not end with a question")
    return messages


def _check_answer(messages: list[Message], name: str) -> None:
    """Raise if a conversation does not end with an answer that is one to train on."""
    if not messages or messages[-1].speaker != "assistant":
        raise SchemaError(f"field {name!r} does not end with an answer")
    if len(messages) < 2:
        raise SchemaError(f"there is no question before the answer in {name!r}")
    if not messages[-1].text.strip():
        raise SkipRecordError(EMPTY_ANSWER)
    if not messages[-1].has_loss:
        raise SkipRecordError(NOTHING_TO_TRAIN)


def _check_prompt(row: dict[str, Any], conversation: list[Message]) -> None:
    """Raise SchemaError if a text in `prompt` is no message of the conversations beside it."""
    prompt = row.get("prompt")
    if isinstance(prompt, str) and not _split_marks(prompt):
        texts = [message.text for message in conversation[:-1]]
        if strip_blank_lines(prompt) not in texts:
            raise SchemaError("'prompt' is not in the conversations of 'chosen' and 'rejected'")


def _check_pair(row: dict[str, Any], chosen: str, rejected: str) -> None:
    """Raise SkipRecordError if the answers are equal, or their scores equal or the other way round.

    Raises SchemaError for scores that are not numbers.
    """
    if chosen.strip() == rejected.strip():
        raise SkipRecordError(EQUAL_ANSWERS)
    for names in _SCORES:
        chosen_score, rejected_score = (row.get(name) for name in names)
        if chosen_score is None or rejected_score is None:
            continue
        if not all(isinstance(score, (int, float)) for score in (chosen_score, rejected_score)):
            raise SchemaError(f"{' and '.join(names)} are not numbers")
        if chosen_score == rejected_score:
            raise SkipRecordError(TIE)
        # Not swapped: the order and the scores are two opinions, and either may be the wrong one.
        if chosen_score < rejected_score:
            raise SkipRecordError(CONTRADICTION)


def _texts(messages: list[Message]) -> list[tuple[str, str]]:
    """Return speakers and texts of messages, without their loss marks."""
    return [(message.speaker, message.text) for message in messages]


def _build_turns(prompt: list[Message], *, has_system: bool) -> list[Turn]:
    """Return the turns of a prompt, the last one with an empty answer, without losses.

    Raises SchemaError for an empty question, except the first one if there is a system text or if
    the assistant speaks first, and for an empty answer.
    """
    assistant_first = prompt[0].speaker == "assistant"
    texts = [message.text for message in prompt]
    texts = ["", *texts] if assistant_first else texts
    # The speakers alternate.
    turns = [
        Turn(question, answer, has_loss=False)
        for question, answer in zip(texts[::2], [*texts[1::2], ""], strict=True)
    ]
    for number, turn in enumerate(turns, 1):
        may_be_empty = number == 1 and (has_system or assistant_first)
        if not turn.question and not may_be_empty:
            raise SchemaError(f"question {number} of {len(turns)} is empty")
        if not turn.answer and number < len(turns):
            raise SchemaError(f"answer {number} of {len(turns)} is empty")
    return turns


def _is_pair(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file has two answers."""
    output = row.get("output")
    return (isinstance(output, list) and len(output) == 2) or all(
        row.get(name) is not None for name in _ANSWERS
    )


_SCORE_FIELDS = {name for names in _SCORES for name in names}
FIELDS = Fields(
    used=frozenset(
        {
            *_MESSAGE_LISTS,
            *QUESTION_FIELDS,
            *_SCORE_FIELDS,
            "output",
            "history",
            "system",
            "passage",
            "rejected_is_cut",
        }
    ),
    unsupported=UNSUPPORTED,
)
MESSAGE_FIELDS = Fields(
    used=frozenset({"from", "value", "role", "content"}), unsupported=MESSAGE_UNSUPPORTED
)


def check_fields(row: dict[str, Any]) -> set[str]:
    """Check the fields of a record and of all its messages; see `Fields.check`.

    Raises SchemaError, which says what to do, for a single answer with a label.
    """
    if is_unpaired(row):
        raise SchemaError(f"one answer with a label; {UNPAIRED_CURE}")
    unlisted = FIELDS.check(row)
    for name in _MESSAGE_LISTS:
        value = row.get(name)
        for message in value if isinstance(value, list) else [value]:
            if isinstance(message, dict):
                unlisted |= MESSAGE_FIELDS.check_object(message)
    return unlisted


SOURCES = (
    Source(
        name="preferences",
        description="preference pairs: JSONL or a JSON list of chosen and rejected, with prompt, "
        "conversations or instruction, or as whole conversations",
        parse=parse_preference,
        kind="preferences",
        check_fields=check_fields,
        keys=(frozenset(_ANSWERS), frozenset({"instruction", "output"})),
        recognizes=_is_pair,
    ),
)
