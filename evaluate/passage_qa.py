"""`python -m evaluate.passage_qa`: passage QA, with the right passage and with another one."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import SQUAD, PassageQAOptions

DESCRIPTION = """Ask questions about passages, with the right passage and with another one.

A model whose control, the answers with the wrong passage, scores as high does not use the passage.
Answers are greedy. Questions that do not fit the model's context are left out and counted.

--source redgpt: every turn of conversations about a passage, after the true turns before it. An
answer is exact if it equals the true one except for white space around it. Questions whose true
answer says that the passage does not have it, such as 文中没有提到, are counted apart, and so are
such answers to the other questions: wrong with the right passage, right with the other one.
Questions are also counted by the position of their answer: the third of the passage that contains
the longest part of the true answer that occurs in the passage word for word and not in the
question.

--source squad: files in the schema of SQuAD, DRCD or CMRC 2018, also without any passage: what the
model knows, or guesses. Exact match and F1 are those of CMRC 2018's script, the best over the gold
answers: exact match without punctuation, F1 by the longest common run of characters and words. The
wrong passage is one without the true answer if there is one. Beside the model stand two trivial
methods, which without --checkpoint are scored alone: the sentence of the passage that has most
character bigrams of the question, and the longest number or name in that sentence that the question
does not have. Traditional characters are converted to simplified ones in passages, questions and
answers alike, unless --script original is given. Questions that a passage does not answer (SQuAD
2.0) are counted apart: right is an answer that says so, or an empty one.

Of each answer is counted how much is copied from the passage that it was given: the share of its
characters in parts of at least four that are in the passage. True answers are the yardstick.

--index DIR: also with the passages that a question finds in an index of python -m data.index which
has those of --input, alone or among others: the first, and the first --passages together, joined
by line ends, the best last. The worst are left out where all do not fit the context. redgpt: they
are found by the conversation so far, the question and the true turns before it; how often the right
passage is found is printed for the question alone, too.

  python -m data.index --source redgpt --input test.json --out indexed/test
  python -m evaluate.passage_qa --checkpoint runs/x --source redgpt --input test.json \\
      --index indexed/test"""


def main() -> None:
    """Ask questions about passages with the options of the command line."""
    options = parse_options(
        PassageQAOptions, sys.argv[1:], name="evaluate.passage_qa", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    if options.source == SQUAD:
        from evaluate.measures.squad import run_squad

        run_squad(options)
    else:
        from evaluate.measures.passage_qa import run_passage_qa

        run_passage_qa(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
