"""The records that sources yield, before any tokenizer is involved.

Each kind of record (`data.kinds`) has a record class of its own. A source yields `SkippedRecord`
for a record that is left out on purpose and `BadRecord` for one that it cannot read.
"""

import abc
from dataclasses import dataclass

# The ids of a record, and start and stop of each of its answers among them.
EncodedRecord = tuple[list[int], list[tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Record(abc.ABC):
    """Base of all usable records."""

    @abc.abstractmethod
    def plain_text(self) -> str:
        """Return all text of the record, for deduplication and for tokenizer training."""


@dataclass(frozen=True, slots=True)
class Document(Record):
    """One whole document in reading order."""

    text: str

    def plain_text(self) -> str:
        """Return the text."""
        return self.text


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and the answer to it. The question is empty if the assistant speaks first.

    `has_loss` is False for an answer that is context only: it is not trained on.
    """

    question: str
    answer: str
    has_loss: bool = True


@dataclass(frozen=True, slots=True)
class Conversation(Record):
    """One or more turns, about a reference passage if there is one. At least one has a loss.

    `system` is the system text, an instruction to the assistant for all turns, or empty. `title` is
    that of the document that the reference is a part of, if it is known; no model reads it.
    """

    turns: tuple[Turn, ...]
    reference: str = ""
    system: str = ""
    title: str = ""

    def plain_text(self) -> str:
        """Return reference, system text, questions and answers, joined by newlines.

        Without the first two, their lines are empty; deduplication ignores white space.
        """
        texts = [self.reference, self.system]
        for turn in self.turns:
            texts += [turn.question, turn.answer]
        return "\n".join(texts)


@dataclass(frozen=True, slots=True)
class Summary(Record):
    """An article and its title (or headline), both unaltered."""

    article: str
    title: str

    def plain_text(self) -> str:
        """Return the article and its title, joined by a newline."""
        return f"{self.article}\n{self.title}"


@dataclass(frozen=True, slots=True)
class Preference(Record):
    """Two answers to the same question, of which one is preferred.

    `turns` come before the question and are context only; there may be none. `reference` and
    `system` are as in `Conversation`. `rejected_is_cut` says that a limit of length ended the
    rejected answer: its ids have no end of answer, because the model did not give one.
    """

    turns: tuple[Turn, ...]
    question: str
    chosen: str
    rejected: str
    reference: str = ""
    system: str = ""
    rejected_is_cut: bool = False

    def plain_text(self) -> str:
        """Return all texts in the order of the conversation, the two answers last."""
        texts = [self.reference, self.system]
        for turn in self.turns:
            texts += [turn.question, turn.answer]
        return "\n".join([*texts, self.question, self.chosen, self.rejected])


@dataclass(frozen=True, slots=True)
class SkippedRecord:
    """A readable record that is left out; `reason` is short, such as `label below 3`."""

    reason: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """An unreadable record. It is counted and quarantined, and does not end a preparation."""

    file: str
    line: int
    reason: str
