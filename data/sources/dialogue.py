"""Helpers of the conversation sources: split dialogues into messages, build turns of messages."""

import itertools
import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from data.records import Conversation, Turn
from data.sources.base import SchemaError, SkipRecordError, strip_blank_lines
from data.sources.fields import NOTHING_TO_TRAIN, UNSUPPORTED_ROLES, snake_case

# A system message is an instruction to the assistant, for the whole conversation.
Speaker = Literal["system", "human", "assistant"]
# A speaker's name stands at the beginning of a line: `Human:`, `HUMAN:`, `Human：`, `Human(用户):`.
# One space after the colon belongs to the name, further ones are indentation.
_SPEAKER_PATTERN = re.compile(
    r"^[ \t]*(Human|HUMAN|Assistant|ASSISTANT)[ \t]*"
    r"(?:[(（][^()（）\n]{1,20}[)）])?[ \t]*[:：][ \t]?",
    re.MULTILINE,
)
# The reason of records in which one answer has a loss on some of its text only.
PARTLY_TRAINED = "answer to train on in part"


class Message(NamedTuple):
    """A message of a conversation. `has_loss` is False for an answer that is not trained on."""

    speaker: Speaker
    text: str
    has_loss: bool = True


def build_conversation(messages: Iterable[Message], reference: str = "") -> Conversation:
    """Return the conversation that messages form, without blank lines around their texts.

    `reference` is the passage that the conversation is about, if there is one. Consecutive messages
    of one speaker are joined, one line each. If the assistant speaks first, the first question is
    empty; it may be if there is a system text. A last question without an answer is left out.
    Raises SchemaError for any other empty question, for an empty answer, if there is no answer at
    all, and as `split_system` does; SkipRecordError if no answer has a loss, or only a part of one.
    """
    system, merged_messages = split_system(messages)
    if merged_messages and merged_messages[-1].speaker == "human":
        merged_messages.pop()
        if not merged_messages:
            raise SchemaError("there is no answer, only a question")
    if not merged_messages:
        raise SchemaError("there are no messages")
    assistant_first = merged_messages[0].speaker == "assistant"
    if assistant_first:
        merged_messages.insert(0, Message("human", ""))
    # After merging, the speakers alternate: every second message is a question.
    turns = tuple(
        Turn(question.text, answer.text, answer.has_loss)
        for question, answer in zip(merged_messages[::2], merged_messages[1::2], strict=True)
    )
    for number, turn in enumerate(turns, 1):
        if not turn.question and not (number == 1 and (assistant_first or system)):
            raise SchemaError(f"question {number} of {len(turns)} is empty")
        if not turn.answer:
            raise SchemaError(f"answer {number} of {len(turns)} is empty")
    if not any(turn.has_loss for turn in turns):
        raise SkipRecordError(NOTHING_TO_TRAIN)
    return Conversation(turns, strip_blank_lines(reference), system)


def split_system(messages: Iterable[Message]) -> tuple[str, list[Message]]:
    """Return the system text, which may be empty, and the other messages in turn.

    Consecutive messages of one speaker are joined, one line each, without blank lines around them.
    Training and serving share this function. Raises SchemaError for a system message after the
    others: a chat template has one place for it, at the beginning. Raises SkipRecordError if only
    some of the messages of one answer have a loss.
    """
    merged = _merge_messages(messages)
    system = merged.pop(0).text if merged and merged[0].speaker == "system" else ""
    if any(message.speaker == "system" for message in merged):
        raise SchemaError("a system message stands after the first question or answer")
    return system, merged


def _merge_messages(messages: Iterable[Message]) -> list[Message]:
    """Join consecutive messages of one speaker, one line each; empty messages add no line.

    Raises SkipRecordError if only some of the messages of one answer have a loss.
    """
    merged: list[Message] = []
    # An empty system text is none: it does not separate the messages around it.
    spoken = (
        message for message in messages if message.speaker != "system" or message.text.strip()
    )
    for speaker, group in itertools.groupby(spoken, key=lambda message: message.speaker):
        parts = [message._replace(text=strip_blank_lines(message.text)) for message in group]
        parts = [part for part in parts if part.text]
        has_loss = {part.has_loss for part in parts}
        if speaker == "assistant" and len(has_loss) > 1:
            raise SkipRecordError(PARTLY_TRAINED)
        merged.append(Message(speaker, "\n".join(part.text for part in parts), has_loss != {False}))
    return merged


def split_dialogue(text: str, *, alternating: bool = False) -> list[Message]:
    """Split a dialogue in one text at the speakers' names, `Human:` and `Assistant:`.

    With `alternating`, for data whose speakers always alternate, a name that would give one speaker
    two turns in a row is taken for part of a quotation and does not split the text. Raises
    SchemaError if the text does not begin with a name.
    """
    matches = list(_SPEAKER_PATTERN.finditer(text))
    if not matches or text[: matches[0].start()].strip():
        raise SchemaError(
            f"the dialogue does not begin with Human: or Assistant: but with {text.strip()[:20]!r}"
        )
    if alternating:
        matches = _alternating_matches(matches)
    # The text of a message ends where the next name begins.
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [
        Message(_match_speaker(match), text[match.end() : end])
        for match, end in zip(matches, ends, strict=True)
    ]


def _match_speaker(match: re.Match[str]) -> Speaker:
    """Return the speaker whose name a match of `_SPEAKER_PATTERN` has."""
    return "human" if match[1].lower() == "human" else "assistant"


def _alternating_matches(matches: list[re.Match[str]]) -> list[re.Match[str]]:
    """Return the matches of names that begin a message, so that speakers alternate."""
    alternating: list[re.Match[str]] = []
    for match in matches:
        if not alternating or _match_speaker(alternating[-1]) != _match_speaker(match):
            alternating.append(match)
        elif _match_speaker(match) == "human" and len(alternating) > 1:
            # Of two `Human:` in a row the first is part of the reply before it: replies quote
            # dialogues more often than questions do. The first message has no reply before it.
            alternating[-1] = match
    return alternating


def resolve_speaker(role: Any, roles: dict[str, Speaker], number: int) -> Speaker:
    """Return the speaker that `roles` has for the role of message `number`.

    Raises SkipRecordError for a tool, and SchemaError for any other role.
    """
    if isinstance(role, str) and role in roles:
        return roles[role]
    if isinstance(role, str) and snake_case(role) in UNSUPPORTED_ROLES:
        raise SkipRecordError(f"unsupported role {role}")
    raise SchemaError(
        f"message {number} is from {role!r}; a conversation of two has {', '.join(roles)}"
    )
