"""`python -m evaluate.merge`: the dev loss of a QLoRA adapter, as trained and merged."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import MergeOptions

DESCRIPTION = """Measure the ways of merging a QLoRA adapter (docs/lora.md).

  base                     the base's own weights, without the adapter
  base in nf4              the 4-bit weights, without the adapter
  adapter beside nf4       what was trained
  merged into dequantized  the 4-bit weights as numbers, plus the adapter
  merged into original     the base's own weights, plus the adapter, which has not seen them

Each is scored on the dev splits that the run was evaluated on: loss and perplexity of the answers,
computed in fp32. The merged weights are rounded to --dtype first, as an export stores them; choose
by this table which of the two to export (python -m model.export --merge ...).

  python -m evaluate.merge --checkpoint runs/sft-csl --dtype bfloat16"""


def main() -> None:
    """Compare the ways of merging with the options of the command line."""
    options = parse_options(
        MergeOptions, sys.argv[1:], name="evaluate.merge", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.merge import compare_merges

    compare_merges(options)


if __name__ == "__main__":
    run_main(main)
