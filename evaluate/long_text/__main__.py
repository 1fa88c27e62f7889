"""`python -m evaluate.long_text`: how far back in a long text a model makes use of its past."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.long_text.options import LongTextOptions

DESCRIPTION = """Measure how a model's loss on long documents depends on how much text it sees.

By past: the same tokens are scored again and again, each time with more of the text before them:
64 tokens, 128, 256, and so on. As the tokens are the same, all that differs is the past. The gain
of a past over the one before has an interval over documents; where it no longer lies above 0, the
model has stopped making use of its past, and where it lies below 0, a longer past does harm.

By position: the plain loss of all tokens by their distance from the beginning of what the model
sees. Here the tokens differ.

The documents are those of --source and --input, of a prepared shard set (--data), or the held-out
ones that the run was trained beside, as far as they are long enough. A window of the longest past
and --targets scored tokens is cut from each at a random place, and more from longer ones until
there are --windows of them."""


def main() -> None:
    """Measure a checkpoint on long text with the options of the command line."""
    options = parse_options(
        LongTextOptions, sys.argv[1:], name="evaluate.long_text", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.long_text.measure import run_long_text

    run_long_text(options)


if __name__ == "__main__":
    run_main(main)
