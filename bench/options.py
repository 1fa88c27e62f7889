"""Options of the benchmarks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bench.contenders import CONTENDERS
from bench.decoders import DECODERS
from common.machine import num_cores
from common.options import CliSuppress, CommaSeparated, Options, OutputFile

# Steps of a turn that are not timed: until then a process writes to memory that it has never used,
# at up to half a second of system time a step.
NUM_WARMUP_STEPS = 3


class TurnOptions(Options):
    """Options of the benchmarks whose contenders take turns, each turn in its own process."""

    turns: int = Field(3, ge=1, description="turns of each contender")
    threads: int = Field(
        default_factory=num_cores, ge=1, description="threads of a process, by default all cores"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures and every turn to this file"
    )


class TrainSpeedOptions(TurnOptions):
    """Options of `python -m bench.train`."""

    steps: int = Field(
        7,
        gt=NUM_WARMUP_STEPS,
        description=f"steps of a turn; the first {NUM_WARMUP_STEPS} are not timed",
    )
    rows: int = Field(8, ge=1, description="rows of a batch")
    length: int = Field(512, ge=1, description="tokens of a row")
    contenders: Annotated[tuple[str, ...], CommaSeparated] = Field(
        ("babyllama", "transformers", "litgpt"),
        description=f"in this order, separated by commas, of {', '.join(CONTENDERS)}",
    )
    # The process of one turn.
    turn: CliSuppress[str | None] = None
    turn_folder: CliSuppress[Path] = Path()


class GenerateSpeedOptions(TurnOptions):
    """Options of `python -m bench.generate`."""

    prompt: int = Field(64, ge=1, description="tokens of the longest prompt")
    new: int = Field(256, ge=2, description="new tokens of each prompt")
    contenders: Annotated[tuple[str, ...], CommaSeparated] = Field(
        tuple(DECODERS), description="some of these, separated by commas"
    )
    # The process of one turn.
    turn: CliSuppress[int | None] = None
    turn_folder: CliSuppress[Path] = Path()


class SftSpeedOptions(TurnOptions):
    """Options of `python -m bench.sft`."""

    data: Path = Field(description="a prepared shard set of summaries or conversations")
    length: int = Field(512, ge=2, description="positions of a packed row")
    records: int = Field(64, ge=1, description="records of a step")
    steps: int = Field(4, ge=2, description="steps of a turn; the first is not timed")
    # The process of one turn.
    turn: CliSuppress[Literal["packed", "naive"] | None] = None


class LossOptions(Options):
    """Options of `python -m bench.loss`."""

    tokens: int = Field(4096, ge=1, description="positions with a loss")
    hidden: int = Field(256, ge=1, description="width")
    vocabulary: int = Field(65_000, ge=1, description="ids")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="type that the head is computed in"
    )
    turns: int = Field(3, ge=1, description="processes of each path, in turns")
    # The process of one turn.
    path: CliSuppress[Literal["full", "chunked", "torch"] | None] = None
