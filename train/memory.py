"""`python -m train.memory`: plan the memory of a run, and what fits a card."""

import sys

from common.errors import run_main
from common.options import parse_options
from train.memory_options import MemoryOptions

DESCRIPTION = """Plan the memory of training: what each part needs, and the peak.

--config reads the options of a run, such as configs/pretrain-43m.yaml, and ignores those that
memory does not depend on. Beside the peak there are the largest micro-batch for cards of 6 to 80
GiB, and what to change first if it does not fit. Nothing is trained."""


def main() -> None:
    """Print the plan for the options of the command line."""
    options = parse_options(
        MemoryOptions,
        sys.argv[1:],
        name="train.memory",
        description=DESCRIPTION,
        has_config_file=True,
        ignores_unknown_keys=True,
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from train.memory_report import report_memory

    report_memory(options)


if __name__ == "__main__":
    run_main(main)
