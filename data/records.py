"""What a source yields: a document, or the record it could not read. Neither knows of tokens."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """One whole document: what belongs together, in reading order."""

    text: str


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that could not be read: counted and quarantined, never the end of a preparation."""

    file: str
    line: int
    reason: str
