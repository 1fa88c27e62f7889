"""Options of the evaluation commands."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from common.options import CliPositionalArg, CliVariadicArg, Device, Options, OutputFile
from evaluate.decoding.settings import GREEDY, Decoding

_CHECKPOINT_HELP = "a run, one of its steps, or an exported folder"
# The source with all gold answers of each question (`data.sources.squad`).
SQUAD = "squad"
_TOGETHER = "--source and --input belong together: --source csl --input FILE"
# Numbers of records that `evaluate.rouge --dialogue` asks about by default: in each condition, and
# with every phrasing, which are hundreds.
DIALOGUE_RECORDS = 100
DIALOGUE_PHRASING_RECORDS = 20
# What `evaluate.report --before` asks by default: records of each task, and tokens of an answer.
RECORDS_PER_TASK = 100
ANSWER_TOKENS = 128
# Number of passages that `evaluate.passage_qa --index` asks with together by default.
PASSAGES_TOGETHER = 3


class DeviceOptions(Options):
    """The device that a model runs on, and the number format of its weights."""

    device: Device = Field("auto", description="where to compute; auto: on a GPU if there is one")
    quantize: Literal["int8"] | None = Field(
        None,
        description="measure the model with int8 weights: a quarter of the memory of fp32 "
        "(see docs/inference.md)",
    )
    kv_cache: Literal["bf16"] | None = Field(
        None,
        description="keep the keys and values of long texts in bf16: half the memory of fp32 "
        "(docs/long-context.md)",
    )


class EvaluateOptions(DeviceOptions):
    """Options of `python -m evaluate`."""

    checkpoint: Path | None = Field(
        None,
        description="a run, or one of its steps (default: the run in runs/ that was saved last)",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="measure only this many records at the start of each dev and test split "
        "(default: all; text is always scored whole). The results replace those of all records",
    )


class MeasureOptions(DeviceOptions):
    """Options of all commands that measure a checkpoint on records."""

    checkpoint: Path | None = Field(None, description=_CHECKPOINT_HELP)
    source: str | None = Field(
        None, description="source of --input, such as csl, redgpt, wikipedia, jsonl"
    )
    input: CliVariadicArg[tuple[str, ...]] = Field((), description="native files, folders or globs")
    limit: int | None = Field(
        None, ge=1, description="measure only this many records (or lines of --score) at the start"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.source) != bool(self.input):
            lines.append(_TOGETHER)
        return lines


class PerplexityOptions(MeasureOptions):
    """Options of `python -m evaluate.perplexity`."""

    checkpoint: Path = Field(description=_CHECKPOINT_HELP)
    data: Path | None = Field(
        None, description="a prepared shard set (default: the one the run was trained on)"
    )
    split: Literal["train", "validation"] = Field(
        "validation", description="split of the shard set"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="measure only this many records at the start (of text: tokens)",
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.source and (self.data or self.split != "validation"):
            lines.append(
                "--data and --split name a shard set, --source and --input files: give one"
            )
        return lines


class MergeOptions(Options):
    """Options of `python -m evaluate.merge`."""

    checkpoint: Path = Field(
        description="a run, or one of its steps, whose adapter was trained beside 4-bit weights"
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="number format that the merged weights are rounded to, as exported"
    )
    device: Device = Field("auto", description="where to compute; auto: on a GPU if there is one")
    limit: int | None = Field(
        None, ge=1, description="measure only this many records at the start of each dev split"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )


class AverageOptions(Options):
    """Options of `python -m evaluate.average`."""

    checkpoint: Path = Field(description="a run that keeps several checkpoints")
    last: CliVariadicArg[tuple[int, ...]] = Field(
        (2, 3), description="how many of the newest checkpoints to average"
    )
    device: Device = Field("auto", description="where to compute; auto: on a GPU if there is one")
    limit: int = Field(
        1000, ge=1, description="measure only this many records at the start of each dev split"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if not self.last or min(self.last) < 2:
            lines.append("--last: give one or more numbers of checkpoints, each at least 2")
        return lines


class AnswerOptions(MeasureOptions):
    """Options of the commands that let a checkpoint answer."""

    max_new_tokens: int = Field(64, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")
    predictions: OutputFile | None = Field(
        None, description="write requests and answers to this file"
    )


class RougeOptions(AnswerOptions, Decoding):
    """Options of `python -m evaluate.rouge`."""

    baseline: Literal["first20", "first_sentence", "best_sentence"] | None = Field(
        None, description="score this instead of a model"
    )
    score: Path | None = Field(None, description="score the predictions in a file")
    case: Literal["lower", "kept"] | None = Field(
        None,
        description="lower-case the letters of both texts, or keep their case (default: as "
        "published scores of the source do: csl lower, lcsts kept; for --score the case that the "
        "file names, else lower)",
    )
    run_decoding: bool = Field(
        True,
        description="decode as python -m evaluate.decoding chose for the run, unless an option of "
        "decoding is given or --dialogue; false: do not",
    )
    dialogue: bool = Field(
        False,
        description="ask for each title also in other words, after chat, and with lead-ins, and "
        f"report the drop; of the first {DIALOGUE_RECORDS} records, unless --limit gives a number",
    )
    phrasing_records: int | None = Field(
        None,
        ge=1,
        description="with --dialogue: ask for at most this many records with every phrasing "
        f"(default: {DIALOGUE_PHRASING_RECORDS})",
    )

    @property
    def decoding(self) -> Decoding:
        """Return the decoding setting of the options, without that of the run."""
        return Decoding(**self.model_dump(include=set(Decoding.model_fields)))

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.score and (self.checkpoint or self.baseline or self.source or self.input):
            lines.append(
                "--score reads finished predictions: leave out --checkpoint, --baseline, --source "
                "and --input"
            )
        if not self.score and not self.checkpoint and not (self.baseline and self.source):
            lines.append(
                "nothing to score: give --checkpoint RUN, or --baseline NAME --source csl --input "
                "FILE, or --score FILE"
            )
        if (self.score or self.baseline) and self.decoding != GREEDY:
            lines.append("options of decoding are for a model: leave out --score and --baseline")
        if self.dialogue and (self.score or self.baseline):
            lines.append(
                "--dialogue asks a model: leave out --score and --baseline, and give --checkpoint "
                "RUN"
            )
        if self.phrasing_records and not self.dialogue:
            lines.append("--phrasing_records is for --dialogue: give both, or neither")
        return lines


class PassageQAOptions(AnswerOptions):
    """Options of `python -m evaluate.passage_qa`."""

    checkpoint: Path | None = Field(
        None, description=f"{_CHECKPOINT_HELP}; without one, squad has the trivial lines alone"
    )
    source: str = Field(description="source of --input: redgpt, or squad (SQuAD, DRCD, CMRC 2018)")
    input: CliVariadicArg[tuple[str, ...]] = Field(description="native files, folders or globs")
    limit: int | None = Field(
        None, ge=1, description="measure only this many records (squad: questions) at the start"
    )
    max_new_tokens: int = Field(128, ge=1, description="longest answer in tokens")
    script: Literal["simplified", "original"] | None = Field(
        None,
        description="squad: convert passages, questions and answers to simplified characters, or "
        "leave them as they are (default: simplified)",
    )
    index: Path | None = Field(
        None,
        description="an index of python -m data.index: ask also with what each question finds in "
        "it, the first passage, and the first --passages together",
    )
    passages: int | None = Field(
        None,
        ge=2,
        description="with --index: how many passages to ask with together, or as many of them as "
        f"fit the context (default: {PASSAGES_TOGETHER})",
    )

    @property
    def passages_together(self) -> int:
        """Return the number of passages to ask with together."""
        return self.passages or PASSAGES_TOGETHER

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.source != SQUAD and not self.checkpoint:
            lines.append("--checkpoint: is required (only --source squad has trivial lines alone)")
        if self.source != SQUAD and self.script:
            lines.append("--script is for --source squad: other sources are asked as they are")
        if not self.checkpoint and self.predictions:
            lines.append("--predictions has the answers of a model: give --checkpoint RUN")
        if not self.checkpoint and self.index:
            lines.append("--index finds passages for a model to read: give --checkpoint RUN")
        if self.passages and not self.index:
            lines.append("--passages is for --index: give both, or neither")
        return lines


class RepetitionOptions(AnswerOptions):
    """Options of `python -m evaluate.repetition`."""

    max_new_tokens: int = Field(256, ge=1, description="longest answer in tokens")
    score: Path | None = Field(None, description='measure the "prediction" of each line of a file')

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.score) == bool(self.checkpoint):
            lines.append(
                "give what to measure: --checkpoint RUN --source NAME --input FILE, or --score FILE"
            )
        if self.checkpoint and not self.source:
            lines.append("--checkpoint needs questions: --source redgpt --input FILE")
        if self.score and self.source:
            lines.append("--score reads finished predictions: leave out --source and --input")
        return lines


class TrigramOptions(Options):
    """Options of `python -m evaluate.trigram`."""

    data: Path | None = Field(None, description="a prepared shard set")
    checkpoint: Path | None = Field(
        None, description="a run, for the shard set that it was trained on"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if bool(self.data) == bool(self.checkpoint):
            lines.append("give either --data SHARDSET or --checkpoint RUN")
        return lines


class ReportOptions(DeviceOptions):
    """Options of `python -m evaluate.report`."""

    runs: CliPositionalArg[tuple[Path, ...]] = Field(description="folders of runs, finished or not")
    out: Path = Field(
        Path("report"),
        description="write OUT.md, OUT.html and the pictures OUT-1-….svg; into a folder that "
        "exists: report.md …",
    )
    before: Path | None = Field(
        None,
        description="the model that the run (or step) was tuned from: a run, a step or an exported "
        "folder. Ask both the same questions, and say what became longer, loopier or forgotten",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="with --before: ask about this many records of each task "
        f"(default: {RECORDS_PER_TASK})",
    )
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description=f"with --before: longest answer in tokens (default: {ANSWER_TOKENS})",
    )

    @property
    def records_per_task(self) -> int:
        """Return the number of records of each task."""
        return self.limit or RECORDS_PER_TASK

    @property
    def answer_tokens(self) -> int:
        """Return the length in tokens of the longest answer."""
        return self.max_new_tokens or ANSWER_TOKENS

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.before and len(self.runs) != 1:
            lines.append("--before is the base of one run: name a single RUN")
        model_options = (self.limit, self.max_new_tokens, self.quantize, self.kv_cache)
        if (any(model_options) or self.device != "auto") and not self.before:
            lines.append(
                "--limit, --max_new_tokens, --device, --quantize and --kv_cache are for --before: "
                "without it no model is run"
            )
        return lines
