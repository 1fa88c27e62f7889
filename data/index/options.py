"""Options of `python -m data.index`."""

from pathlib import Path

from pydantic import Field

from common.options import Options


class WindowOptions(Options):
    """How documents are divided into passages; see data/index/passages.py."""

    characters: int = Field(
        300,
        ge=20,
        le=5000,
        description="characters of a passage, about; a shorter document is one passage",
    )
    overlap: int = Field(
        0,
        ge=0,
        description="characters, at most, that a passage repeats of the one before it, in whole "
        "sentences",
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.overlap >= self.characters:
            lines.append(
                f"--overlap {self.overlap} must be less than --characters {self.characters}"
            )
        return lines


class IndexOptions(WindowOptions):
    """Where an index is, and how documents are divided."""

    out: Path = Field(description="folder of the index: a new one, or one to add to")


class IndexCommandOptions(WindowOptions):
    """Options of the command line, except its --source and --input groups."""

    data: str | None = Field(
        None,
        description="what to index, by name: a corpus of make data, or a file or folder whose "
        "format is recognized (default, without --source: sample)",
    )
    out: Path | None = Field(
        None,
        description="folder of the index: a new one, or one to add to (default, without --source: "
        "indexed/NAME)",
    )
