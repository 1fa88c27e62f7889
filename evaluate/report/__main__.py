"""`python -m evaluate.report RUN…`: one page that compares runs, as Markdown and as HTML."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import ReportOptions

DESCRIPTION = """Compare runs on one page.

The page shows the data, model and command of each run, the metrics during training, the options
that differ, the curves, the results of evaluation commands and the newest samples. The results of a
run are the files that evaluation commands wrote into its folder:

python -m evaluate.perplexity --checkpoint runs/a --json runs/a/results/perplexity.json

With --before BASE the page begins with what tuning changed. Both models answer the first records of
the test split (or dev split) of the base's own data, the old task, and of the run's, the new one:
length, loops, answers ended by <eos>, ROUGE or exact answers, and loss, each before and after with
the paired difference and its interval, a sentence for each that changed, and answers side by side.
make evaluate does this by itself with the base that a run records. For a run of make dpo or sft:

python -m evaluate.report runs/dpo-pairs --before runs/sft-csl"""


def main() -> None:
    """Write a report with the options of the command line."""
    options = parse_options(
        ReportOptions, sys.argv[1:], name="evaluate.report", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading Jinja2.
    from evaluate.report.write import write_report

    if options.before is None:
        write_report(options.runs, options.out)
        return
    from evaluate.before_after.compare import compare_with_base
    from evaluate.measure_run import resolve_run

    run = resolve_run(options.runs[0])
    write_report([run], options.out, compare_with_base(options, run))


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
