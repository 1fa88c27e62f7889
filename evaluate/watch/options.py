"""Options of `python -m evaluate.watch`."""

from pathlib import Path

from pydantic import Field

from common.options import CliPositionalArg, CliVariadicArg
from evaluate.options import DeviceOptions


class WatchOptions(DeviceOptions):
    """Options of `python -m evaluate.watch`."""

    run: CliPositionalArg[Path] = Field(description="folder of a run, finished or not")
    source: str | None = Field(
        None,
        description="source of --input, such as csl, redgpt, wikipedia (default: the dev split of "
        "the run's data)",
    )
    input: CliVariadicArg[tuple[str, ...]] = Field((), description="native files, folders or globs")
    questions: Path | None = Field(
        None,
        description="a text file with a question a line; for a pretraining run, the beginning of a "
        "text",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="ask about only this many records of each set, or lines, at the start "
        "(default: 32 records, or all lines)",
    )
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.source) != bool(self.input):
            lines.append("--source and --input belong together: --source csl --input FILE")
        if self.questions and (self.source or self.input):
            lines.append("--questions replaces the records: leave out --source and --input")
        return lines
