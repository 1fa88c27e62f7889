"""`python -m evaluate.rouge`: ROUGE of the summaries of a checkpoint, a baseline, or a file."""

import sys

from common.errors import run_main
from common.options import parse_options
from evaluate.options import DIALOGUE_PHRASING_RECORDS, DIALOGUE_RECORDS, RougeOptions

DESCRIPTION = f"""Score summaries against true titles: ROUGE-1, -2 and -L, precision, recall and F.

They are counted on characters, the convention of published CSL and LCSTS figures, and on jieba
words; of lower-cased text for CSL and in the case as written for LCSTS (--case), as published. The
mean over examples comes with its 95 % interval; beside a checkpoint stand the first 20 characters
and the first sentence of the same articles, and how many answers loop. What is scored is one of
  --checkpoint RUN      the answers of a model to the request for the title of each article
  --baseline NAME       first20 (the first 20 characters of the article), first_sentence, or
                        best_sentence (the sentence most like the title, an oracle)
  --score FILE.jsonl    lines of {{"prediction": "...", "reference": "..."}} from any program
on the articles of --source and --input, by default on the test split that belongs to the data of
the run.

With --dialogue, a model is asked for the same titles by the canonical request, which is the one
above, by every phrasing that training draws from, after 1 to 4 turns of chat, and with each lead-in
(such as 标题：) that it was taught. Each answer is scored whole and without a taught lead-in, F on
characters alone. The drop of each condition against the canonical request has a paired interval.
Unless --limit and --phrasing_records give numbers, the first {DIALOGUE_RECORDS} records are asked
for, and the first {DIALOGUE_PHRASING_RECORDS} of them by every phrasing, which are hundreds. An
interrupted command goes on where it was, if it writes --json or --predictions."""


def main() -> None:
    """Score summaries with the options of the command line."""
    options = parse_options(
        RougeOptions, sys.argv[1:], name="evaluate.rouge", description=DESCRIPTION
    )
    # Imported here so that --help and invalid options answer without loading PyTorch.
    if options.dialogue:
        from evaluate.measures.rouge_dialogue import run_rouge_dialogue

        run_rouge_dialogue(options)
    else:
        from evaluate.measures.rouge import run_rouge

        run_rouge(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
