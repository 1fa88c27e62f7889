"""`python -m evaluate.rouge`: ROUGE of the summaries of a checkpoint, a baseline, or a file."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import RougeOptions

DESCRIPTION = """Score summaries against true titles: ROUGE-1, -2 and -L, precision, recall and F.

They are counted on characters, the convention of published CSL and LCSTS figures, and on jieba
words; of lower-cased text for CSL and in the case as written for LCSTS (--case), as published. The
mean over examples comes with its 95 % interval. What is scored is one of
  --checkpoint RUN      the answers of a model to the request for the title of each article
  --baseline NAME       first20 (the first 20 characters of the article), first_sentence, or
                        best_sentence (the sentence most like the title, an oracle)
  --score FILE.jsonl    lines of {"prediction": "...", "reference": "..."} from any program
on the articles of --source and --input, by default on the test split that belongs to the data of
the run."""


def main() -> None:
    """Score summaries with the options of the command line."""
    options = parse_options(
        RougeOptions, sys.argv[1:], name="evaluate.rouge", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.rouge import run_rouge

    run_rouge(options)


if __name__ == "__main__":
    run_main(main)
