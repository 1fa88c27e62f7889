"""`python -m evaluate.report RUN…`: one page that compares runs, as Markdown and as HTML."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import ReportOptions

DESCRIPTION = """Compare runs on one page.

The page shows the data, model and command of each run, the metrics during training, the options
that differ, the curves, the results of evaluation commands and the newest samples. The results of a
run are the files that evaluation commands wrote into its folder:

python -m evaluate.perplexity --checkpoint runs/a --json runs/a/results/perplexity.json"""


def main() -> None:
    """Write a report with the options of the command line."""
    options = parse_options(
        ReportOptions, sys.argv[1:], name="evaluate.report", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading Jinja2.
    from evaluate.report.write import write_report

    write_report(options.runs, options.out)


if __name__ == "__main__":
    run_main(main)
