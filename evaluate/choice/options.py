"""Options of `python -m evaluate.choice`."""

from typing import Literal

from pydantic import Field

from common.options import CliVariadicArg, OutputFile
from evaluate.options import MeasureOptions

# The sources whose questions have the letters that a convention asks for.
LETTER_SOURCES = {"lm-eval": ("cmmlu", "ceval"), "cmmlu": ("cmmlu",), "ceval": ("ceval",)}


class ChoiceOptions(MeasureOptions):
    """Options of `python -m evaluate.choice`; without a checkpoint only what needs no model."""

    source: Literal["cmmlu", "ceval", "c3", "jsonl"] = Field(description="format of --input")
    input: CliVariadicArg[tuple[str, ...]] = Field(
        description="the folder of a dataset, files or globs"
    )
    convention: Literal["answer-text", "chat", "lm-eval", "cmmlu", "ceval"] = Field(
        "answer-text", description="the prompt, and what is scored in it"
    )
    shots: int = Field(
        0, ge=0, description="number of solved examples in front of each question, of its subject"
    )
    shot_seed: int | None = Field(
        None, ge=0, description="draw the examples with this seed (default: the first ones)"
    )
    shot_input: CliVariadicArg[tuple[str, ...]] = Field(
        (), description="files of the solved examples (default: dev/ of the dataset's folder)"
    )
    limit: int | None = Field(
        None, ge=1, description="ask only this many questions at the start of each subject"
    )
    predictions: OutputFile | None = Field(
        None, description="write questions and scores of their options to this file"
    )

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        sources = LETTER_SOURCES.get(self.convention)
        if sources and self.source not in sources:
            lines.append(
                f"--convention {self.convention} is defined for {' and '.join(sources)}: use "
                f"answer-text for --source {self.source}"
            )
        if self.shots and not self.shot_input and self.source in ("c3", "jsonl"):
            lines.append(
                f"--shots {self.shots}: --source {self.source} has no examples of its own; name "
                "files of them with --shot_input"
            )
        if self.predictions and not self.checkpoint:
            lines.append("--predictions has the scores of a model: give --checkpoint RUN too")
        if self.shots and self.convention == "chat":
            lines.append("--shots: --convention chat has no solved examples; leave one out")
        return lines
