"""`python -m evaluate.perplexity`: loss, perplexity, accuracy and bits per character on text."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import PerplexityOptions

DESCRIPTION = """Measure a checkpoint on text.

The text is a split of a prepared shard set (--data DIR --split validation) or native files of a
source (--source jsonl --input FILE ...), encoded with the tokenizer of the checkpoint.

Documents are `<bos> text <eos>`, concatenated and cut into windows of 256 tokens; every token
except the first is scored once, with the tokens before it in its window as context. Only the
answers of conversations and summaries are scored, each with the conversation before it as context,
in rows of 1,024 tokens, or of the length that the model was trained on if that is less. A longer
conversation is cut after the last answer that fits, and the end of a longer article is cut off. A
record without an answer that fits is left out. The result has the number of records that were cut
and of those that were left out.

Loss and perplexity are per token and compare only models with the same tokenizer; bits per
character compares all."""


def main() -> None:
    """Measure perplexity with the options of the command line."""
    options = parse_options(
        PerplexityOptions, sys.argv[1:], name="evaluate.perplexity", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.perplexity import run_perplexity

    run_perplexity(options)


if __name__ == "__main__":
    run_main(main)
