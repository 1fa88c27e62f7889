"""`python -m bench.beside`: training and decoding speed beside other busy processes."""

import sys

from bench.options import BesideOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Measure training and decoding on a CPU alone and beside other busy processes.

Threads that wait for each other spin for a while before they sleep, and a spinning thread occupies
a core. The 43M model trains, and decodes one row and 16 rows, by turns with three ways to wait:
libgomp's default, this project's, and without spinning."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        BesideOptions, sys.argv[1:], name="bench.beside", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.beside_speed import compare_waiting

    compare_waiting(options)


if __name__ == "__main__":
    run_main(main)
