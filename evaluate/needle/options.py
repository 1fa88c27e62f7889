"""Options of `python -m evaluate.needle`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from common.options import CliVariadicArg, CommaSeparated, OutputFile, OutputPage
from evaluate.options import DeviceOptions

MIN_LENGTH = 64


def _check_lengths(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the lengths in ascending order, once each. Raises ValueError for one that is short."""
    for length in lengths:
        if length < MIN_LENGTH:
            raise ValueError(f"{length} is too short for a text; at least {MIN_LENGTH}")
    return tuple(sorted(set(lengths)))


class NeedleOptions(DeviceOptions):
    """Options of `python -m evaluate.needle`."""

    checkpoint: Path = Field(description="a run, one of its steps, or an exported folder")
    task: Literal["register", "topics", "haystack"] = Field(
        "register",
        description="register: a number in a register; topics: a topic of a conversation; "
        "haystack: a number in real text, that of --input",
    )
    language: Literal["zh", "en"] = Field("zh", description="language of questions and needles")
    lengths: Annotated[tuple[int, ...], CommaSeparated, AfterValidator(_check_lengths)] = Field(
        (),
        description="lengths of the texts in tokens, with question and answer, separated by commas "
        "(default: 256, 512, 1024 … up to the length that the model was trained on)",
    )
    depths: int = Field(
        5, ge=1, le=100, description="equal parts of a text, each of which is asked about"
    )
    count: int = Field(
        200,
        ge=1,
        le=1_000_000,
        description="texts of each length; with --export: documents or conversations in all",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the texts")
    digits: int | None = Field(
        None,
        ge=1,
        le=9,
        description="digits of the numbers (default: 3, or what the longest register needs)",
    )
    needles: int = Field(
        8, ge=2, le=1000, description="of a haystack: numbers in the text, all of them candidates"
    )
    form: Literal["auto", "chat", "plain"] = Field(
        "auto",
        description="chat: in the chat template; plain: a document to continue; auto: chat if the "
        "checkpoint has a template, which fine-tuning writes",
    )
    method: Literal["likelihood", "generation", "both"] = Field(
        "both",
        description="likelihood: the most likely of the values in the text; generation: greedy "
        "answers",
    )
    source: str | None = Field(
        None, description="source of --input, such as jsonl, mnbvc, wikipedia"
    )
    input: CliVariadicArg[tuple[str, ...]] = Field(
        (), description="haystack: native files, folders or globs of documents"
    )
    max_new_tokens: int = Field(32, ge=1, description="longest generated answer in tokens")
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    predictions: OutputFile | None = Field(
        None, description="write every question with its answer to this file"
    )
    page: OutputPage | None = Field(
        None, description="also write a page with heat maps: PAGE.md, PAGE.html and PAGE-….svg"
    )
    export: OutputFile | None = Field(
        None,
        description="write texts with answers to train on to this file, and measure none; no fact "
        "of a test is in them",
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if (self.task == "haystack") != bool(self.input):
            lines.append(
                "--task haystack needs text, and no other task reads any: --task haystack "
                "--source jsonl --input FILE"
            )
        if bool(self.source) != bool(self.input):
            lines.append("--source and --input belong together: --source jsonl --input FILE")
        if self.task == "haystack" and self.needles < self.depths:
            lines.append(
                f"--needles {self.needles} is less than --depths {self.depths}: each part of the "
                "text needs one"
            )
        if self.export and (self.json_file or self.predictions or self.page):
            lines.append(
                "--export writes texts to train on and measures nothing: leave out --json, "
                "--predictions and --page"
            )
        return lines
