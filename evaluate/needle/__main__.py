"""`python -m evaluate.needle`: whether a model finds what stands in a long text."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.needle.options import NeedleOptions

DESCRIPTION = """Ask a model for what stands somewhere in a long text, at any length and place.

  --task register    a register with a line for each entry and its number, all different; the
                     question is for the number of an entry
  --task topics      a conversation about many topics; the question is for the first one, or for
                     the one that came after another
  --task haystack    a few sentences with numbers (--needles) in real text, that of --source and
                     --input

The first two are after the line and topic tests of LongChat; the sentences are this project's own,
in Chinese and in English, and drawn with a seed. A text is divided into --depths equal parts, and
is asked about a random value of each. Lengths are in tokens and include question and answer.

A fine-tuned model is asked in its chat template, a passage being the reference of the question. A
pretrained one continues a document that ends with the question and the beginning of the answer.

Likelihood: all values of the text are candidates; the answer is the one whose tokens have the
largest probability. Generation: greedy; the answer is the first value in it. Beside the model stand
chance, the first value of the text and the last one. A search for the words of the question finds
every answer.

--export writes other texts with answers: conversations for a fine-tuned model, else documents
({"text": …}). No fact of a test is in them, whatever the seed.
  python -m evaluate.needle --checkpoint RUN --lengths 256,512 --count 5000 --export needles.jsonl

How far a model makes use of ordinary text is measured by python -m evaluate.long_text."""


def main() -> None:
    """Measure a checkpoint, or export texts, with the options of the command line."""
    options = parse_options(
        NeedleOptions, sys.argv[1:], name="evaluate.needle", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    if options.export:
        from evaluate.needle.export import export_texts

        export_texts(options, options.export)
    else:
        from evaluate.needle.measure import run_needle

        run_needle(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
