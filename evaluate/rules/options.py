"""Options of `python -m evaluate.rules`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from common.options import CommaSeparated, OutputFile
from evaluate.options import DeviceOptions
from evaluate.rules.families import FAMILIES

Method = Literal["likelihood", "generation", "both"]


def _check_families(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names without repetitions. Raises ValueError for one that is not a family."""
    for name in names:
        if name not in FAMILIES:
            raise ValueError(f"unknown family {name}; choose of {', '.join(FAMILIES)}")
    return tuple(dict.fromkeys(names))


_Families = Annotated[tuple[str, ...], CommaSeparated, AfterValidator(_check_families)]


class RulesOptions(DeviceOptions):
    """Options of `python -m evaluate.rules`."""

    checkpoint: Path | None = Field(
        None, description="a run, one of its steps, or an exported folder"
    )
    families: _Families = Field(
        tuple(FAMILIES), description="what to ask or to export, separated by commas"
    )
    count: int = Field(
        200, ge=1, le=100_000, description="items of each family, each asked in three forms"
    )
    generation_count: int = Field(
        50,
        ge=1,
        description="items of each family that are answered by generation, which takes longer; "
        "they are the first ones, and at most --count",
    )
    difficulty: Literal[1, 2, 3] = Field(
        1, description="1: small numbers and short rules; 3: large numbers and several steps"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the items")
    method: Method = Field(
        "both",
        description="likelihood: the most likely of the candidates; generation: greedy answers",
    )
    max_new_tokens: int = Field(32, ge=1, description="longest generated answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")
    trained_on: Path | None = Field(
        None,
        description="a file of --export that the model was trained on: families in it and others "
        "are reported apart",
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    predictions: OutputFile | None = Field(
        None, description="write every item with its answers to this file"
    )
    export: OutputFile | None = Field(
        None, description="write items as conversations to train on to this file, and measure none"
    )
    hold_out: _Families = Field(
        (), description="families that --export leaves out, separated by commas"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.checkpoint) == bool(self.export):
            lines.append(
                "give what to measure, --checkpoint RUN, or what to write, --export FILE: one of "
                "the two"
            )
        if self.hold_out and not self.export:
            lines.append("--hold_out is for --export: it says which families are not written")
        if self.trained_on and not self.checkpoint:
            lines.append("--trained_on is for --checkpoint: it names what that was trained on")
        if not self.families:
            lines.append(f"--families names none; choose of {', '.join(FAMILIES)}")
        elif self.export and set(self.families) <= set(self.hold_out):
            lines.append("--hold_out leaves nothing of --families to export")
        return lines
