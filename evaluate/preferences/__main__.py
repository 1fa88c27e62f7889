"""`python -m evaluate.preferences`: make preference pairs of a model's own answers."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.preferences.options import PreferencesOptions

DESCRIPTION = """Make preference pairs for make dpo out of a model's own answers.

Every question of the records, or the request for the title of every article, is answered several
times, and a measure scores the answers. The rejected answer is the worst sample, the preferred one
the best sample that ended by itself and has no loop, or the reference answer of the record:

  better titles        --source csl --measure rouge --least_difference 0.2
  exact answers        --source redgpt --measure exact
  no loops, and ends   --source belle-0.5m --measure ending
  reference answers    --chosen reference --samples 1

A question whose answers do not differ in the measure gives no pair; the reasons are counted.
Samples follow from the model, the seed and the question alone. Those drawn so far are kept in
OUT.partial until OUT is written, so that the same command continues an interrupted one."""


def main() -> None:
    """Make pairs with the options of the command line."""
    options = parse_options(
        PreferencesOptions, sys.argv[1:], name="evaluate.preferences", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.preferences.make_pairs import make_pairs

    make_pairs(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
