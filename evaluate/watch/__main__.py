"""`python -m evaluate.watch RUN`: the same questions to every checkpoint of a run, on one page."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.watch.options import WatchOptions

DESCRIPTION = """Ask every kept checkpoint of a run the same few questions.

The validation loss can fall while answers get worse: they begin to loop, lose what the passage
says, or grow. The page RUN/watch.md and .html shows the answers of all checkpoints side by side,
and over the steps: validation loss, answers that loop, answers ended by <eos>, their length, ROUGE
(summaries) and exact answers (conversations about a passage), as tables and as curves. Where ROUGE,
exact answers or loops get worse from a step to a later one with a lower loss, by more than chance
explains, it says so. Answers are greedy.

The questions are the first records of the dev split of the run's own data, one question a record;
of a pretraining run, beginnings of its held-out texts, which the model continues. --source and
--input name other records, --questions a file with a question or beginning a line.

The answers are kept in RUN/results/watch.json: a later call asks new checkpoints alone. Training
deletes old checkpoints unless it is told --checkpoint.keep all."""


def main() -> None:
    """Ask the checkpoints of a run with the options of the command line."""
    options = parse_options(
        WatchOptions, sys.argv[1:], name="evaluate.watch", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.watch.watch_run import watch_run

    watch_run(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
