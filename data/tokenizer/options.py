"""Options of the commands of `python -m data.tokenizer`."""

from pathlib import Path

from pydantic import Field

from common.options import CliVariadicArg, Options
from data.sources import SOURCES

_SOURCE_HELP = (
    f"source of the inputs that name none: {', '.join(SOURCES)}, jsonl:FIELD, or strings for every "
    "string of JSON lines and every column of other lines (default: detected for each file)"
)
_TOKENIZER_HELP = "a SentencePiece model, or a folder with a tokenizer.model"


class TrainOptions(Options):
    """Options of `python -m data.tokenizer train`."""

    out: Path = Field(description="folder for tokenizer.model")
    input: CliVariadicArg[tuple[str, ...]] = Field(
        (),
        description="[SOURCE=]PATH: files, folders or globs; each may name its source "
        "(default: the sample)",
    )
    source: str | None = Field(None, description=_SOURCE_HELP)
    vocabulary: int = Field(8192, ge=260, le=1 << 21, description="ids")
    longest: int = Field(16, ge=1, le=512, description="characters of the longest piece")
    coverage: float = Field(
        0.9995,
        ge=0.98,
        le=1,
        description="share of the characters of the text that get ids; the rarest are spelled in "
        "bytes",
    )
    common_characters: bool = Field(
        False,
        description="give ASCII, punctuation and the 3,755 common characters of GB 2312 ids even "
        "if the text lacks them",
    )
    sentences: int = Field(
        1_000_000,
        ge=1,
        le=1 << 40,
        description="train on a random sample of at most this many lines, which bounds memory",
    )
    seed: int = Field(0, description="seed of that sample")


class ImportOptions(Options):
    """Options of `python -m data.tokenizer import`."""

    input: Path = Field(description="a SentencePiece model")
    out: Path = Field(description="folder for tokenizer.model")


class ExportOptions(Options):
    """Options of `python -m data.tokenizer export`."""

    tokenizer: Path = Field(description=_TOKENIZER_HELP)
    out: Path = Field(description="folder for tokenizer.json and tokenizer_config.json")


class InspectOptions(Options):
    """Options of `python -m data.tokenizer inspect`."""

    tokenizer: Path = Field(description=_TOKENIZER_HELP)
    text: str | None = Field(None, description="print the pieces of this text")
    input: CliVariadicArg[tuple[str, ...]] = Field(
        (),
        description="[SOURCE=]PATH: files, folders or globs whose compression is measured; each "
        "may name its source",
    )
    source: str | None = Field(None, description=_SOURCE_HELP)
