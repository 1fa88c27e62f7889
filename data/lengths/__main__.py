"""`python -m data.lengths`: how long the records are, and which row length suits them."""

import sys

from common.errors import run_main
from common.options import parse_options
from data.lengths.options import LengthsOptions

DESCRIPTION = """Measure how long records are, and what rows of each length would keep of them.

Rows that are too short cut answers, and an answer without its end teaches a model not to stop; rows
that are too long cost time and memory. What is cut, kept or left out is what training does.

  python -m data.lengths --data csl+belle-0.8m:0.5
  python -m data.lengths --source redgpt --input redgpt.json.gz --picture lengths.svg

A token count includes the words of the chat template and the special ids, a count of characters is
that of the record's own text. A prompt is all that comes before an answer, earlier turns included;
an answer includes its <eos>."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        LengthsOptions, sys.argv[1:], name="data.lengths", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading NumPy.
    from data.lengths.command import run_survey

    run_survey(options)


if __name__ == "__main__":
    run_main(main)
