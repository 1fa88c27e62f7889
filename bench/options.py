"""Options of the benchmarks."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from bench.contenders import CONTENDERS
from bench.decoders import DECODERS
from common.machine import num_cores
from common.options import CliSuppress, CommaSeparated, Options, OutputFile

# First steps of a process that are not timed: until then it writes to memory that it has never
# used, at up to half a second of system time a step.
NUM_WARMUP_STEPS = 3


class RoundOptions(Options):
    """Options of the benchmarks that measure their contenders in alternating rounds."""

    rounds: int = Field(
        3, ge=1, description="number of rounds; each contender is measured once in each"
    )
    threads: int = Field(
        default_factory=num_cores, ge=1, description="threads of a process, by default all cores"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures and every round to this file"
    )


class TrainSpeedOptions(RoundOptions):
    """Options of `python -m bench.train`."""

    steps: int = Field(
        7,
        gt=NUM_WARMUP_STEPS,
        description=f"steps of a round; the first {NUM_WARMUP_STEPS} are not timed",
    )
    rows: int = Field(8, ge=1, description="rows of a batch")
    length: int = Field(512, ge=1, description="tokens of a row")
    contenders: Annotated[tuple[str, ...], CommaSeparated] = Field(
        ("babyllama", "transformers", "litgpt"),
        description=f"in this order, separated by commas, of {', '.join(CONTENDERS)}",
    )
    # Set in a process that measures one contender once, on the files of the parent process.
    only_contender: CliSuppress[str | None] = None
    task_folder: CliSuppress[Path] = Path()


class GenerateSpeedOptions(RoundOptions):
    """Options of `python -m bench.generate`."""

    prompt: int = Field(64, ge=1, description="tokens of the longest prompt")
    new: int = Field(256, ge=2, description="new tokens of each prompt")
    rows: Annotated[tuple[int, ...], CommaSeparated] = Field(
        (1, 16, 64), description="prompts that are decoded together, separated by commas"
    )
    contenders: Annotated[tuple[str, ...], CommaSeparated] = Field(
        tuple(DECODERS), description="some of these, separated by commas"
    )
    # Set in a process that measures one item of ENTRANTS once, on the files of the parent process.
    only_entrant: CliSuppress[int | None] = None
    task_folder: CliSuppress[Path] = Path()


class BesideOptions(RoundOptions):
    """Options of `python -m bench.beside`."""

    others: Annotated[tuple[int, ...], CommaSeparated] = Field(
        (0, 1, 2, 3), description="numbers of busy processes to run beside, separated by commas"
    )
    seconds: float = Field(5, gt=0, description="duration of each measurement")
    # Set in a process that measures one task once.
    only_task: CliSuppress[Literal["train", "decode-1", "decode-16"] | None] = None
    # Whether that process chooses its threads by the load when it decodes.
    adapts_threads: CliSuppress[bool] = False


class SftSpeedOptions(RoundOptions):
    """Options of `python -m bench.sft`."""

    data: Path = Field(description="a prepared shard set of summaries or conversations")
    length: int = Field(512, ge=2, description="positions of a packed row")
    records: int = Field(64, ge=1, description="records of a step")
    steps: int = Field(4, ge=2, description="steps of a round; the first is not timed")
    # Set in a process that measures one method once.
    only_method: CliSuppress[Literal["packed", "packed-bf16", "naive"] | None] = None


class QloraOptions(RoundOptions):
    """Options of `python -m bench.qlora`."""

    rounds: int = Field(
        1, ge=1, description="number of rounds; each contender is measured once in each"
    )
    size: Literal["1.1b", "70m"] = Field(
        "1.1b", description="shape of the random Llama: TinyLlama's, or one that takes seconds"
    )
    steps: int = Field(4, ge=2, description="steps of a round; the first is not timed")
    length: int = Field(512, ge=1, description="tokens of the one row of a step")
    # Set in a process that measures one contender once, on the files of the parent process.
    only_contender: CliSuppress[Literal["babyllama", "peft"] | None] = None
    task_folder: CliSuppress[Path] = Path()


class LossOptions(Options):
    """Options of `python -m bench.loss`."""

    tokens: int = Field(4096, ge=1, description="positions with a loss")
    hidden: int = Field(256, ge=1, description="size of a hidden state")
    vocabulary: int = Field(65_000, ge=1, description="vocabulary size")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="number format in which the LM head is computed"
    )
    rounds: int = Field(3, ge=1, description="number of rounds; each path is measured once in each")
    # Set in a process that measures one loss path once.
    path: CliSuppress[Literal["full", "chunked", "torch"] | None] = None


class AttentionOptions(Options):
    """Options of `python -m bench.attention`."""

    rows: int = Field(8, ge=1, description="rows of a batch")
    heads: int = Field(8, ge=1, description="heads of queries, keys and values")
    head_dim: int = Field(32, ge=1, description="size of a head")
    length: int = Field(512, ge=1, description="positions of a row")
    segments: int = Field(4, ge=1, description="segments of a packed row, of random lengths")
    threads: int = Field(
        1, ge=1, description="threads; of one the processor time is measured, of several the clock"
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="number format of the inputs")
    rounds: int = Field(
        20, ge=1, description="number of rounds; each variant is measured once in each"
    )


class MemoryOptions(Options):
    """Options of `python -m bench.memory`."""

    only: Annotated[tuple[int, ...], CommaSeparated] = Field(
        (), description="numbers of configurations, separated by commas (default: all)"
    )
    peaks: Path | None = Field(
        None,
        description="a file that --json wrote: compare the plan with the peaks in it, and measure "
        "nothing",
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    # Set in a process that measures one configuration, on the base that the parent process wrote.
    measured: CliSuppress[int | None] = None
    base: CliSuppress[Path | None] = None
