"""`python -m evaluate`: measure a run with each command that fits it, and write a report."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import EvaluateOptions

DESCRIPTION = """Measure a run with every command that fits it, and write a report.

A pretraining run: evaluate.perplexity and evaluate.trigram. A fine-tuned run: evaluate.perplexity
on its dev split, then on the test split of its data evaluate.rouge (summaries) or evaluate.reading
(conversations about a reference), and evaluate.repetition. A mixture is measured part by part: each
part of a pretraining mixture beside a trigram of that part alone, replay in a fine-tuning mixture
without one.

Each command is printed. Its figures go to RUN/results/, the report to RUN/report.md and .html. The
figures of a single step go to the folders of its run."""


def main() -> None:
    """Run the command."""
    options = parse_options(EvaluateOptions, sys.argv[1:], name="evaluate", description=DESCRIPTION)
    # After the options: the help and their mistakes need not wait for PyTorch.
    from evaluate.measure_run import measure_run

    measure_run(options)


if __name__ == "__main__":
    run_main(main)
