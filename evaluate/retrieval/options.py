"""Options of `python -m evaluate.retrieval`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.options import CliVariadicArg, CommaSeparated, Options, OutputFile

OtherTokens = Literal["jieba", "pieces"]


class RetrievalOptions(Options):
    """Which questions are asked of which index."""

    index: Path = Field(description="an index of python -m data.index")
    input: CliVariadicArg[tuple[str, ...]] = Field(
        description="questions about passages of the index: files, folders or globs in SQuAD's "
        "schema"
    )
    limit: int | None = Field(None, ge=1, description="ask only this many questions at the start")
    compare: Annotated[tuple[OtherTokens, ...], CommaSeparated] = Field(
        ("jieba", "pieces"),
        description="also search the same passages by other tokens: words of jieba, pieces of "
        "--tokenizer; none: --compare ,",
    )
    tokenizer: Path | None = Field(
        None,
        description="a SentencePiece model, or a folder with a tokenizer.model (default: the small "
        "tokenizer of the repository)",
    )
    json_file: OutputFile | None = Field(
        None, alias="json", description="also write the figures to this file"
    )
    predictions: OutputFile | None = Field(
        None, description="write each question with the passage that it found first to this file"
    )
