"""Options of `python -m evaluate.maths`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.options import CliVariadicArg, OutputFile
from evaluate.options import DeviceOptions

GENERATED = ("arithmetic", "word-problems")


class MathsOptions(DeviceOptions):
    """Options of `python -m evaluate.maths`."""

    checkpoint: Path | None = Field(
        None,
        description="a run, one of its steps, or an exported folder; without one, the trivial "
        "lines alone",
    )
    source: Literal["arithmetic", "word-problems", "jsonl", "gsm8k", "mgsm_zh"] = Field(
        description="generated arithmetic or word-problems; or the format of --input"
    )
    input: CliVariadicArg[tuple[str, ...]] = Field(
        (), description="files, folders or globs of jsonl, gsm8k or mgsm_zh"
    )
    limit: int | None = Field(
        None, ge=1, description="measure only this many problems of --input at the start"
    )
    difficulty: int = Field(
        3,
        ge=1,
        le=5,
        description="hardest level of the generated problems, which are of all levels up to it",
    )
    count: int = Field(300, ge=1, description="number of generated problems")
    seed: int = Field(0, ge=0, description="seed of the generated problems")
    max_new_tokens: int = Field(64, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    predictions: OutputFile | None = Field(
        None, description="write questions and answers to this file"
    )
    export: OutputFile | None = Field(
        None,
        description="write generated problems with worked solutions to this file, to train on; "
        "none of them is ever in a test",
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        is_generated = self.source in GENERATED
        if is_generated and self.input:
            lines.append(f"--source {self.source} is generated: leave out --input")
        if is_generated and self.limit:
            lines.append(f"--source {self.source} is generated: give --count, not --limit")
        if not is_generated and not self.input:
            lines.append(f"--source {self.source} reads files: give --input FILE")
        if not is_generated and self.export:
            lines.append(
                "--export writes generated problems: give --source arithmetic or word-problems"
            )
        if self.export and (self.checkpoint or self.json_file or self.predictions):
            lines.append(
                "--export writes problems to train on and measures nothing: leave out "
                "--checkpoint, --json and --predictions"
            )
        if not self.checkpoint and self.predictions:
            lines.append("--predictions has the answers of a model: give --checkpoint RUN")
        return lines
