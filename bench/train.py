"""`python -m bench.train`: training speed and memory on a CPU beside other projects."""

import sys

from bench.options import TrainSpeedOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Compare training speed and memory on a CPU with other projects.

Every measurement is a process of its own, and the contenders alternate, A B C A B C ..., because
the speed of a machine drifts: only ratios within one run count. All start from the same weights
file, see the same ids and must report the same losses; otherwise the comparison is refused."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        TrainSpeedOptions, sys.argv[1:], name="bench.train", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.train_speed import compare_training

    compare_training(options)


if __name__ == "__main__":
    run_main(main)
