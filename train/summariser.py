"""`python -m train.summariser`, `make summariser`: from raw data to a scored summariser."""

import sys

from common.errors import run_main
from common.options import parse_options
from train.summariser_options import SummariserOptions

DESCRIPTION = """Make a summariser of raw data: each stage is a command that is printed.

1. a tokenizer of the text: RUN-recipe/tokenizer
2. with --hours, a few steps that measure the speed, and say how long to pretrain
3. pretraining on the text, with a curriculum of tasks made of it: RUN-base
4. fine-tuning on summaries, without those that share a passage with a test set: RUN
5. with --rewards, learning from ROUGE of sampled titles: RUN; the run of 4 is then RUN-sft
6. how to decode, chosen on their dev split: RUN/decoding.json
7. evaluation on their test split: RUN/report.md

A stage that is done is skipped, and one that was stopped goes on: run the same command again. The
groups pretrain, sft and grpo take any option of python -m train.pretrain, python -m train.sft and
python -m train.grpo."""


def main() -> None:
    """Run the stages with the options of the command line."""
    options = parse_options(
        SummariserOptions,
        sys.argv[1:],
        name="train.summariser",
        description=DESCRIPTION,
        has_config_file=True,
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from train.summariser_stages import make_summariser

    make_summariser(options)


if __name__ == "__main__":
    run_main(main)
