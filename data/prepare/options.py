"""Options of `python -m data.prepare`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from common.options import Options
from data.usable_records import MAX_BAD_SHARE

Share = Annotated[float, Field(ge=0, le=1)]


class CleanOptions(Options):
    """How text is cleaned and which documents are dropped; see data/prepare/clean.py."""

    unicode: Literal["NFC", "NFKC", "none"] = Field(
        "NFC",
        description="Unicode normalization; NFKC also turns full-width punctuation into ASCII",
    )
    markup: bool = Field(
        True, description="remove URL lines, and HTML tags, comments and entities outside code"
    )
    minimum_characters: Annotated[int, Field(ge=1)] = Field(
        20, description="characters below which a document is dropped"
    )
    maximum_characters: Annotated[int, Field(ge=1)] = Field(
        5_000_000, description="characters above which a document is dropped"
    )
    minimum_letters: Share = Field(
        0.4, description="least share of letters, Chinese or not, among visible characters"
    )
    minimum_chinese: Share = Field(
        0.05, description="least share of Chinese characters among visible characters"
    )
    maximum_digits: Share = Field(
        0.3, description="largest share of digits among visible characters"
    )
    maximum_symbols: Share = Field(
        0.5, description="largest share of punctuation and symbols among visible characters"
    )
    maximum_repeated_lines: Share = Field(
        0.5,
        description="largest share of a document's characters in lines that repeat an earlier line",
    )


class DedupOptions(Options):
    """Which duplicates are dropped; see data/prepare/dedup.py."""

    exact: bool = Field(
        True, description="drop documents equal to an earlier one except for white space"
    )
    near: bool = Field(True, description="drop documents similar to an earlier one (MinHash)")
    threshold: Annotated[float, Field(ge=0.5, le=1)] = Field(
        0.8,
        description="least estimated Jaccard similarity of near duplicates' 5-character shingles",
    )


class PrepareOptions(Options):
    """How corpora become a shard set."""

    workers: Annotated[int, Field(ge=1)] | None = Field(
        None, description="processes (default: one per core)"
    )
    limit: Annotated[int, Field(ge=1)] | None = Field(
        None, description="records read of each --source (default: all)"
    )
    validation: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.005,
        description="share held out, of the tokens of text and of the number of other records (a "
        "small corpus holds out more)",
    )
    quarantine_share: Annotated[float, Field(ge=0, le=1)] = Field(
        MAX_BAD_SHARE, description="largest share of records that may be unreadable"
    )
    clean: CleanOptions = Field(default_factory=CleanOptions)
    dedup: DedupOptions = Field(default_factory=DedupOptions)


class PrepareCommandOptions(PrepareOptions):
    """Options of the command line, except its --source, --input and --dev groups."""

    tokenizer: Path = Field(description="a SentencePiece model, or a folder with a tokenizer.model")
    out: Path = Field(description="the shard set to write; a new folder")
