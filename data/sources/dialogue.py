"""What all conversation datasets share: messages of two speakers → turns."""

import itertools
import re
from collections.abc import Iterable
from typing import Any, Literal

from data.records import Conversation, Turn
from data.sources.base import SchemaError

Speaker = Literal["human", "assistant"]
Message = tuple[Speaker, str]
# A speaker is named at the beginning of a line and nowhere else: `Human:`, `HUMAN:`, `Human：`, `Human(用户):`.
_SPEAKER_PATTERN = re.compile(
    r"^[ \t]*(Human|HUMAN|Assistant|ASSISTANT)[ \t]*(?:[(（][^()（）\n]{1,20}[)）])?[ \t]*[:：]",
    re.MULTILINE,
)


def build_conversation(messages: Iterable[Message], reference: str = "") -> Conversation:
    """The turns of messages, whose texts lose the space around them and nothing else.

    Messages of one speaker in a row are one, a line each. Where the assistant speaks first, the first question is
    empty. A question at the end that nobody answers is left out. BadRow for an empty question or answer and for
    messages without any answer.
    """
    merged_messages = [
        (speaker, "\n".join(text for _, message in group if (text := message.strip())))
        for speaker, group in itertools.groupby(messages, key=lambda message: message[0])
    ]
    if merged_messages and merged_messages[-1][0] == "human":
        merged_messages.pop()
        if not merged_messages:
            raise SchemaError("there is no answer, only a question")
    if not merged_messages:
        raise SchemaError("there are no messages")
    assistant_first = merged_messages[0][0] == "assistant"
    texts = [text for _, text in merged_messages]
    if assistant_first:
        texts.insert(0, "")
    turns = tuple(itertools.starmap(Turn, zip(texts[::2], texts[1::2], strict=True)))
    for number, turn in enumerate(turns, 1):
        if not turn.question and not (assistant_first and number == 1):
            raise SchemaError(f"question {number} of {len(turns)} is empty")
        if not turn.answer:
            raise SchemaError(f"answer {number} of {len(turns)} is empty")
    return Conversation(turns, reference.strip())


def split_dialogue(text: str, *, alternating: bool = False) -> list[Message]:
    """The messages of a dialogue in one text, each begun by its speaker's name. BadRow if it does not begin with one.

    Where speakers are known to be `alternating`, names between which nobody else speaks are part of what is said.
    """
    matches = list(_SPEAKER_PATTERN.finditer(text))
    if not matches or text[: matches[0].start()].strip():
        raise SchemaError(
            f"the dialogue does not begin with Human: or Assistant: but with {text.strip()[:20]!r}"
        )
    if alternating:
        matches = _alternating_matches(matches)
    ends = [match.start() for match in matches[1:]] + [len(text)]
    return [
        (_match_speaker(match), text[match.end() : end])
        for match, end in zip(matches, ends, strict=True)
    ]


def _match_speaker(match: re.Match[str]) -> Speaker:
    return "human" if match[1].lower() == "human" else "assistant"


def _alternating_matches(matches: list[re.Match[str]]) -> list[re.Match[str]]:
    """Those names that begin a turn: a reply is far likelier to quote a dialogue than a question is."""
    alternating: list[re.Match[str]] = []
    for match in matches:
        if not alternating or _match_speaker(alternating[-1]) != _match_speaker(match):
            alternating.append(match)
        elif _match_speaker(match) == "human" and len(alternating) > 1:
            alternating[-1] = match
    return alternating


def resolve_speaker(role: Any, roles: dict[str, Speaker], number: int) -> Speaker:
    """The speaker that a role means. BadRow for any other, such as a tool."""
    if not isinstance(role, str) or role not in roles:
        raise SchemaError(
            f"message {number} is from {role!r}, which is no part of a conversation of two ({', '.join(roles)})"
        )
    return roles[role]
