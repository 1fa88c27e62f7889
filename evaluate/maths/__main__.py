"""`python -m evaluate.maths`: arithmetic and word problems, scored by the number of the answer."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.maths.options import MathsOptions

DESCRIPTION = """Ask a model maths problems, and compare the last number of each answer.

The problems are generated, or read from files:
  --source arithmetic      plain sums such as (3+5)×4
  --source word-problems   Chinese word problems of one to three steps
  --source jsonl           lines of {"question": "…", "answer": 12}
  --source gsm8k           GSM8K: the answer ends with #### 12
  --source mgsm_zh         MGSM: lines of question TAB 12, or JSON with answer_number

Answers are greedy. The last number in the answer counts, in digits or in Chinese numerals; it has
to equal the true one exactly. Thousands separators, full-width digits, decimals and fractions are
read; 25% is 25, and the 一 of words such as 一共 is no number.

Beside the model stand two trivial methods: the last number of the question, and the most frequent
answer of the problems themselves. A model that beats neither does not calculate. Without
--checkpoint they are scored alone.

Generated problems are of all levels up to --difficulty, equally many of each:
  arithmetic      level 1 numbers to 9, 2 to 99, 3 to 999, 4 to 9,999, 5 to 99,999; from level 3 on
                  also two operations, and negative differences
  word-problems   1 and 2 one step with numbers to 20 and 100, 3 and 4 two steps to 100 and 1,000,
                  5 three steps to 1,000

--export FILE writes generated problems with worked solutions as conversations, to train on:
  python -m evaluate.maths --source arithmetic --count 20000 --export sums.jsonl
  make sft DATA=sums.jsonl
No problem of a test is in such a file of the same --source: a hash of the numbers of a problem
decides whether it belongs to tests or to training, whatever the seed and the words are. A single
step of a longer solution may be a problem of a test, and so may a sum of the other source."""


def main() -> None:
    """Measure a model on maths problems, or write problems to train on."""
    options = parse_options(
        MathsOptions, sys.argv[1:], name="evaluate.maths", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    if options.export:
        from evaluate.maths.export import export_problems

        export_problems(options, options.export)
    else:
        from evaluate.maths.measure import run_maths

        run_maths(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
