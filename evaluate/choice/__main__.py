"""`python -m evaluate.choice`: multiple choice by likelihood, in a named convention."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.choice.options import ChoiceOptions

DESCRIPTION = """Ask multiple-choice questions; the most likely option is the model's answer.

  --source cmmlu   the folder of CMMLU (test/*.csv, solved examples in dev/*.csv), or CSV files
  --source ceval   the folder of C-Eval (val/*.csv, dev/*.csv), or CSV files with answers
  --source c3      JSON files of C3, whose questions are about a dialogue or a text
  --source jsonl   lines of {"question": "…", "options": ["…", "…"], "answer": "B"}; the answer is a
                   letter, the text of an option or its number from 0; "passage" and "subject" are
                   optional

A figure belongs to its --convention, the prompt and what is scored in it:

  answer-text   the text of each option after 问题：…答案： (and the passage), by likelihood per
                character, and by how much the question raises it (PMI): for small models, which do
                not know what a letter stands for
  chat          the same as an answer in the chat template of the model, with the passage as its
                reference: for fine-tuned models
  lm-eval       the letter, with the prompts of EleutherAI's harness (CMMLU and C-Eval)
  cmmlu, ceval  the letter, with the prompts of the authors of each

Each figure has its 95 % interval (Wilson), and beside it what is reached without reading: by
chance, always the same letter, the longest and the shortest option, and, if there are passages, the
option that shares most pairs of characters with its passage."""


def main() -> None:
    """Ask multiple-choice questions with the options of the command line."""
    options = parse_options(
        ChoiceOptions, sys.argv[1:], name="evaluate.choice", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    from evaluate.choice.measure import run_choice

    run_choice(options)


if __name__ == "__main__":
    run_main(main)
