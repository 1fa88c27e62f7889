"""What a source yields: a document, a conversation or a summary, or the record it could not read or does not use.

None of them knows of tokens.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Document:
    """One whole document: what belongs together, in reading order."""

    text: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer. The question is empty where the assistant speaks first."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """One or more turns, about a reference passage where there is one."""

    turns: tuple[Turn, ...]
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """An article and its title (or headline), as released: neither is altered."""

    article: str
    title: str


@dataclass(frozen=True, slots=True)
class SkippedRecord:
    """A record that was read and is left out on purpose; `reason` is a word or two, such as `low label`."""

    reason: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read: counted and quarantined, never the end of a preparation."""

    file: str
    line: int
    reason: str


Record = Document | Conversation | Summary
Kind = Literal["documents", "conversations", "summaries"]
