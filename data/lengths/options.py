"""Options of `python -m data.lengths`."""

from pathlib import Path

from pydantic import Field

from common.options import CliVariadicArg, Options, OutputFile
from data.mixture import Mixture


class LengthsOptions(Options):
    """Options of `python -m data.lengths`."""

    data: Mixture | None = Field(
        None,
        description="what to measure, as training takes it: a name, a prepared folder, a raw file, "
        "or a mixture such as csl+belle-0.8m:0.5",
    )
    source: str | None = Field(
        None, description="source of --input (default: detected from the files)"
    )
    input: CliVariadicArg[tuple[str, ...]] = Field(
        (), description="native files, folders or globs, which are measured without preparing them"
    )
    tokenizer: Path | None = Field(
        None,
        description="a SentencePiece model, or a folder with a tokenizer (default: of the prepared "
        "set; for --input the one that is shipped)",
    )
    limit: int | None = Field(
        None, ge=1, description="measure only this many records of --input at the start"
    )
    batch_tokens: int = Field(
        2048,
        gt=0,
        description="tokens per optimizer step, for the number of steps; a step has one row at "
        "least",
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    picture: OutputFile | None = Field(None, description="draw the lengths into this file, as SVG")

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.data) == bool(self.input):
            lines.append("give what to measure: either --data NAME, or --source NAME --input FILE")
        elif self.data and (self.source or self.limit):
            lines.append("--source and --limit belong to --input FILE, not to --data")
        return lines
