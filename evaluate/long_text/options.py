"""Options of `python -m evaluate.long_text`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.options import CliVariadicArg, CommaSeparated, OutputFile, OutputPage
from evaluate.options import DeviceOptions


class LongTextOptions(DeviceOptions):
    """Options of `python -m evaluate.long_text`."""

    checkpoint: Path = Field(description="a run, one of its steps, or an exported folder")
    data: Path | None = Field(
        None, description="a prepared shard set of text (default: those the run was trained on)"
    )
    split: Literal["train", "validation"] = Field(
        "validation", description="split of the shard set"
    )
    source: str | None = Field(
        None, description="source of --input, such as jsonl, mnbvc, wikipedia"
    )
    input: CliVariadicArg[tuple[str, ...]] = Field((), description="native files, folders or globs")
    pasts: Annotated[tuple[int, ...], CommaSeparated] = Field(
        (),
        description="numbers of tokens that the model sees before those that are scored, separated "
        "by commas (default: 64, 128, 256 … as long as the model was trained on)",
    )
    targets: int = Field(64, ge=1, description="tokens of a window that are scored")
    windows: int = Field(200, ge=1, description="windows that are cut from the documents, at most")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of their places")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    page: OutputPage | None = Field(
        None, description="also write a page with curves: PAGE.md, PAGE.html and PAGE-….svg"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.source) != bool(self.input):
            lines.append("--source and --input belong together: --source jsonl --input FILE")
        if self.data and self.source:
            lines.append("--data and --source both name text: give one of the two")
        if any(past < 1 for past in self.pasts) or list(self.pasts) != sorted(set(self.pasts)):
            lines.append("--pasts is not in ascending order from 1 on, such as 64,128,256")
        return lines
