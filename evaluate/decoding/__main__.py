"""`python -m evaluate.decoding`: choose on the dev split how a run writes its summaries."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.decoding.options import DecodingOptions

DESCRIPTION = """Measure decoding settings on the dev split, and keep the best with the run.

  python -m evaluate.decoding --checkpoint runs/sft-csl
  python -m evaluate.decoding --checkpoint runs/sft-csl --settings beams=3 beams=3,length_penalty=2
      samples=32,temperature=0.7

A setting is greedy, or some of the options of evaluate.rouge with a comma between them. Each writes
the titles of the same dev articles; ROUGE F on characters, with the paired difference to greedy.

The setting with the highest ROUGE-1 F is stored in RUN/decoding.json if the 95 % interval of its
difference lies above 0. Otherwise it is one that loops less than greedy, if its ROUGE-1 F is not
clearly lower, or else greedy. From then on evaluate.rouge, and so make evaluate, uses it where no
decoding option is given; chat, the server and exports do not.

A title of news is mostly a part of its first sentences, that of an abstract is not. A choice with
--source is for texts of that source alone, beside the one for all others:

  python -m evaluate.decoding --checkpoint runs/sft-csl --data prepared/news --source lcsts

There is no option for other files, so that nothing is chosen on a test split; a dev article that is
in the test split of a known corpus is left out."""


def main() -> None:
    """Measure and store decoding settings with the options of the command line."""
    options = parse_options(
        DecodingOptions, sys.argv[1:], name="evaluate.decoding", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.decoding.choose import choose_decoding

    choose_decoding(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
