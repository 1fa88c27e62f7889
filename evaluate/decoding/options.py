"""Options of `python -m evaluate.decoding`."""

from pathlib import Path

from pydantic import Field

from common.errors import UserError
from common.options import CliVariadicArg, OutputFile
from evaluate.decoding.settings import GREEDY, Decoding, parse_decoding
from evaluate.options import DeviceOptions

# All without repeated 3-grams: the likeliest text often loops, and so do a few samples.
DEFAULT_SETTINGS = (
    "no_repeat_ngram=3",
    "no_repeat_ngram=3,novelty_penalty=4",
    "beams=4,length_penalty=0.5,no_repeat_ngram=3,novelty_penalty=4",
    "beams=4,length_penalty=2,no_repeat_ngram=3,novelty_penalty=4",
    "samples=16,no_repeat_ngram=3,novelty_penalty=4,coverage=2",
    "samples=16,no_repeat_ngram=3,novelty_penalty=4,coverage=2,extracts=true",
    "samples=16,no_repeat_ngram=3,novelty_penalty=4,coverage=4,extracts=true",
)


class DecodingOptions(DeviceOptions):
    """Options of `python -m evaluate.decoding`."""

    checkpoint: Path = Field(description="a run, or one of its steps")
    settings: CliVariadicArg[tuple[str, ...]] = Field(
        DEFAULT_SETTINGS,
        min_length=1,
        description="what to measure beside greedy: options of evaluate.rouge, such as "
        "beams=4,length_penalty=0.5 samples=16,temperature=1",
    )
    data: Path | None = Field(
        None,
        description="a prepared shard set, for its dev split (default: those of the run that have "
        "summaries)",
    )
    source: str | None = Field(
        None,
        description="store the choice for texts of this --source of evaluate.rouge alone, csl or "
        "lcsts (default: for all that have no such choice)",
    )
    limit: int | None = Field(
        None, ge=1, description="ask for only this many records at the start of each dev split"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest answer in tokens")
    batch: int = Field(16, ge=1, description="number of answers that are decoded together")
    store: bool = Field(
        True, description="write the best setting into the run; false: only measure"
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )

    @property
    def decodings(self) -> list[Decoding]:
        """Return the settings to measure, greedy first, none of them twice."""
        # Not a set: frozen options are hashable, but their order is that of the user.
        return list(dict.fromkeys([GREEDY, *map(parse_decoding, self.settings)]))

    def find_conflicts(self) -> list[str]:
        """Return a line for each conflict between options."""
        lines = super().find_conflicts()
        if self.source is not None and not self.store:
            lines.append("--source is for what is stored: leave out --source or --store false")
        for text in self.settings:
            try:
                parse_decoding(text)
            except UserError as error:
                lines += [f"--settings {text}: {line}" for line in str(error).split("\n")]
        return lines
