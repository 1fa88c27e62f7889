"""`python -m data.download NAME`, `make data DATA=NAME`: download and prepare a corpus."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from common.errors import run_main
from common.options import CliPositionalArg, CommaSeparated, Options, parse_options

DESCRIPTION = """Download a corpus by name, verify it, and prepare it.

  python -m data.download              list the names
  python -m data.download wikipedia    downloads/wikipedia/... -> prepared/wikipedia-TOKENIZER
  python -m data.download tokenizer    the 65k tokenizer alone
  python -m data.download sample       prepare the shipped sample, without a network

Run the same command again to resume a broken download. HF_ENDPOINT=https://... is tried before the
Hugging Face hub. A file that was downloaded by hand and put into its place is verified and used."""


class DownloadOptions(Options):
    """Options of `python -m data.download`."""

    name: CliPositionalArg[str | None] = Field(
        None, description="what to download; without it the names are listed"
    )
    tokenizer: Path | None = Field(
        None,
        description="SentencePiece model to prepare with (default: the 65k one, downloaded first; "
        "for the sample the small one that comes with the project)",
    )
    parts: Annotated[tuple[str, ...], CommaSeparated] = Field(
        (), description="parts of a corpus that has some, separated by commas"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = parse_options(
        DownloadOptions,
        sys.argv[1:] if arguments is None else arguments,
        name="data.download",
        description=DESCRIPTION,
    )
    # Imported here so that --help and invalid options answer without loading NumPy.
    from data.corpora.download import run_download

    run_download(options.name, options.parts, options.tokenizer)


if __name__ == "__main__":
    run_main(main)
