"""`python -m evaluate.retrieval`: how often a question finds the passage that answers it."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.retrieval.options import RetrievalOptions

DESCRIPTION = """Ask an index of python -m data.index the questions of files in SQuAD's schema.

R@k is the share of questions for which one of the first k passages is right, and MRR@10 the mean of
1 / rank of the first right one, 0 after the tenth. Right is counted twice: that the passage holds
the answer word for word, which a passage of another paragraph may do by chance, and that it is of
the paragraph that the question was written for, of which another passage may have the answer.

The index searches by characters and pairs of them. For comparison the same passages are searched by
other tokens, with the same formula. Questions that were written while looking at the paragraph
repeat its words; those of users do so less often.

  python -m data.index --source squad --input dev.json --source wikipedia --input wiki/*.parquet \\
      --out indexed/dev
  python -m evaluate.retrieval --index indexed/dev --input dev.json"""


def main() -> None:
    """Measure retrieval with the options of the command line."""
    options = parse_options(
        RetrievalOptions, sys.argv[1:], name="evaluate.retrieval", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading NumPy.
    from evaluate.retrieval.measure import run_retrieval

    run_retrieval(options)


if __name__ == "__main__":
    run_main(main)
