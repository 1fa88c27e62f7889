"""`python -m evaluate.average`: the last checkpoints of a run beside their averages, on dev."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import AverageOptions

DESCRIPTION = """Measure averages of the last checkpoints of a run on its dev splits.

  python -m evaluate.average --checkpoint runs/sft-csl --last 2 3 5
  python -m model.average runs/sft-csl --last 3

Loss and, of questions, the scores of the greedy answers (ROUGE of summaries), each with the paired
difference to the newest checkpoint and its 95 % interval. Nothing is written into the run."""


def main() -> None:
    """Compare averages with the options of the command line."""
    options = parse_options(
        AverageOptions, sys.argv[1:], name="evaluate.average", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.average import compare_averages

    compare_averages(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
