"""`python -m evaluate.repetition`: the share of answers that loop, and that end."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import RepetitionOptions

DESCRIPTION = """Measure repetition in answers, on characters without whitespace.

  repeated 4-grams   fraction of the 4-grams that occurred before in the same answer
  distinct-1, -2     different characters (character bigrams) over all of them, for all answers
  loops              fraction of answers that repeat a stretch of text at least 4 times in a
                     row, over at least 16 characters
  stopped by <eos>   fraction of answers that ended by themselves

Answers are greedy, without any repetition penalty: to every turn of the conversations of
--source and --input, after the true turns before it, or to the request for the title of each
article. With --score they are read from a file; "stopped" and "tokens", and the model that
answered, are taken from the lines if all of them have these fields."""


def main() -> None:
    """Measure repetition with the options of the command line."""
    options = parse_options(
        RepetitionOptions, sys.argv[1:], name="evaluate.repetition", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.repetition import run_repetition

    run_repetition(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
