"""`python -m evaluate`: measure a run with each command that fits it, and write a report."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import EvaluateOptions

DESCRIPTION = """Measure a run with every command that fits it, and write a report.

A pretraining run is measured with evaluate.perplexity and evaluate.trigram. A fine-tuned run is
measured with evaluate.perplexity on its dev split, then on the test split of its data with
evaluate.rouge (summaries, also asked for in a dialogue) or evaluate.passage_qa (conversations about
a reference), and with evaluate.repetition. A mixture is measured part by part. Each part of a
pretraining mixture is compared with a trigram trained on that part alone; replay in a fine-tuning
mixture is not. evaluate.rules and, for conversations, evaluate.maths ask their own questions, and
evaluate.watch compares the checkpoints that a run keeps; --limit does not change these three. The
report sets a run beside the base that it was tuned from, see python -m evaluate.report --help.

Each command is printed. Its figures go to RUN/results/, the report to RUN/report.md and .html. The
figures of a single step go to the folders of its run."""


def main() -> None:
    """Measure a run with the options of the command line."""
    options = parse_options(EvaluateOptions, sys.argv[1:], name="evaluate", description=DESCRIPTION)
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measure_run import measure_run

    measure_run(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)  # The commands that it starts choose for themselves.
