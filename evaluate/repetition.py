"""`python -m evaluate.repetition`: repetition in the answers of a checkpoint, and whether they end."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import RepetitionOptions

DESCRIPTION = """Measure repetition in answers, on characters without whitespace.

  repeated 4-grams   of all 4-grams, the share that occurred before in the same answer
  distinct-1, -2     different characters (pairs of neighbors) over all of them, all answers
                     together
  loops              share of answers with a stretch that stands at least 4 times in a row and
                     so fills at least 16 characters
  stopped by <eos>   share of answers that ended by themselves

Answers are greedy, without a penalty against repetition: to every turn of the conversations of
--source and --input, after the true turns before it, or to the request for the title of each
article. With --score they are read from a file; "stopped" and "tokens", and the model that
answered, are taken from the lines if all of them have these fields."""


def main() -> None:
    """Run the command."""
    options = parse_options(
        RepetitionOptions, sys.argv[1:], name="evaluate.repetition", description=DESCRIPTION
    )
    # After the options: the help and their mistakes need not wait for PyTorch.
    from evaluate.measures.repetition import run_repetition

    run_repetition(options)


if __name__ == "__main__":
    run_main(main)
