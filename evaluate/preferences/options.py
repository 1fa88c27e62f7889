"""Options of `python -m evaluate.preferences`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.options import CliVariadicArg, OutputFile
from evaluate.options import DeviceOptions

Chosen = Literal["sample", "reference"]
MeasureName = Literal["rouge", "exact", "length", "repetition", "ending"]


class PreferencesOptions(DeviceOptions):
    """Options of `python -m evaluate.preferences`."""

    checkpoint: Path = Field(description="a run, one of its steps, or an exported folder")
    source: str = Field(description="source of --input, such as csl, redgpt, belle-0.5m")
    input: CliVariadicArg[tuple[str, ...]] = Field(
        description="native files, folders or globs: those to train on, not the test split"
    )
    out: OutputFile = Field(description="write the pairs to this file, which make dpo reads")
    chosen: Chosen = Field(
        "sample",
        description="the preferred answer: the best sample, or the reference answer of the record",
    )
    measure: MeasureName = Field(
        "rouge",
        description="what samples are compared by: rouge (ROUGE-L F with the reference answer), "
        "exact (equal to it), length (as long as it), repetition (few repeated 4-grams), ending "
        "(ended by itself, without a loop)",
    )
    least_difference: float = Field(
        0.0,
        ge=0,
        le=1,
        description="leave out a pair whose two scores, from 0 to 1, differ by less",
    )
    samples: int = Field(4, ge=1, le=1024, description="answers drawn for each question")
    temperature: float = Field(0.8, ge=0, le=10, description="divisor of the logits; 0: greedy")
    top_p: float = Field(
        0.95, gt=0, le=1, description="draw from the most likely tokens of this probability"
    )
    top_k: int = Field(0, ge=0, description="draw from this many of them; 0: from all")
    max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens")
    batch: int = Field(32, ge=1, description="number of answers that are decoded together")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the samples")
    limit: int | None = Field(None, ge=1, description="use only this many records at the start")

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.chosen == "sample" and self.samples < 2:
            lines.append(
                "--chosen sample compares samples with each other: give --samples 2 or more, or "
                "--chosen reference"
            )
        if self.temperature == 0 and self.samples > 1:
            lines.append("--temperature 0 gives equal samples: give --samples 1, or draw them")
        return lines
