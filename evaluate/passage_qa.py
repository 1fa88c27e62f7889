"""`python -m evaluate.passage_qa`: passage QA, with the right passage and with another one."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import PassageQAOptions

DESCRIPTION = """Ask every turn of conversations about a passage (RedGPT), twice.

Each question is asked once with the passage of its record and once, as the control, with the
passage of another record, each time after the true turns before it. An answer is exact if it equals
the true one except for white space around it. A model whose control scores as high does not use the
passage. Answers are greedy.

Questions whose true answer says that the passage does not have it, such as 文中没有提到, are
counted apart, and so are such answers to the other questions: wrong with the right passage, right
with the other one.

Questions are also counted by the position of their answer: the third of the passage that contains
the longest part of the true answer that occurs in the passage word for word and not in the
question."""


def main() -> None:
    """Ask questions about passages with the options of the command line."""
    options = parse_options(
        PassageQAOptions, sys.argv[1:], name="evaluate.passage_qa", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.measures.passage_qa import run_passage_qa

    run_passage_qa(options)


if __name__ == "__main__":
    run_main(main)
