"""`python -m bench.sft`: fine-tuning speed of packed rows beside padded ones."""

import sys

from bench.options import SftSpeedOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Compare fine-tuning speed: packed rows with the loss on answers, and padded rows.

  packed   several examples in a row, attention within each, loss at the targets only
  naive    one example in a row, padded to the longest of its batch, logits and loss everywhere

Both train babyllama-43m with AdamW on the same records in the same steps. Every measurement is a
process of its own, and the methods alternate, A B A B ...: only ratios within one run count."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        SftSpeedOptions, sys.argv[1:], name="bench.sft", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.sft_speed import compare_packing

    compare_packing(options)


if __name__ == "__main__":
    run_main(main)
