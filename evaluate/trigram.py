"""`python -m evaluate.trigram`: the loss of a Kneser-Ney trigram, a baseline for any model."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import TrigramOptions

DESCRIPTION = "Score an interpolated Kneser-Ney trigram, the baseline of a language model."


def main() -> None:
    """Score the trigram with the options of the command line."""
    options = parse_options(
        TrigramOptions, sys.argv[1:], name="evaluate.trigram", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.trigram import run_trigram

    run_trigram(options)


if __name__ == "__main__":
    run_main(main)
