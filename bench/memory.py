"""`python -m bench.memory`: the memory that training needs on a CPU, beside what is planned."""

import sys

from bench.options import MemoryOptions
from common.errors import run_main
from common.options import parse_options

DESCRIPTION = """Measure the memory of training on a CPU, and compare it with the plan.

Each configuration is a run of a few steps in a process of its own, with the trainer, an evaluation
and a checkpoint. The table has the peak of the process and the peak that python -m train.memory
plans; the command fails if a plan is below the peak, or more than 1.15 times as large."""


def main() -> int:
    """Measure the configurations; return 1 if a plan is outside of the bounds."""
    options = parse_options(
        MemoryOptions, sys.argv[1:], name="bench.memory", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from bench.memory_runs import compare_memory

    return compare_memory(options)


if __name__ == "__main__":
    run_main(main)
