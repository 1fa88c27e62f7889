"""`python -m evaluate.tournament`: compare the answers of several models, and rate them."""

import sys
from collections.abc import Callable
from typing import Any

from common.errors import run_main
from common.options import Options
from common.subcommands import parse_subcommand
from evaluate.tournament.options import AnswerOptions, JudgeOptions, RateOptions

ANSWER_DESCRIPTION = """Let a checkpoint answer a file of questions.

Writes one answer a line, {"question_id", "category", "input", "prediction", …}. The name of the
file without its ending is the name of the model in the tournament. Answers of other programs take
part too: a line needs "input" (the question) and "prediction"."""
JUDGE_DESCRIPTION = """Have the answers of several models compared, every pair in both orders.

The judge is a model behind an endpoint of OpenAI's protocol (--endpoint URL --judge MODEL), which
gives both answers a score from 1 to 10, or you (--person), who sees two answers without names in an
order that the seed draws, and may stop and go on later. Every reply is kept in BATTLES.replies, so
that nothing is asked twice: run the same command again to go on, or with one model more. --dry_run
shows the cost first and sends nothing. A reply without two scores on its first line is never
guessed: the comparison is left out and counted."""
RATE_DESCRIPTION = """Rate models from files of votes.

A file has {"battles": [{"model_a", "model_b", "score_a", "score_b"}, …]}, or JSON lines
{"question_id", "model_a", "model_b", "winner", "judge"} with model_a, model_b or tie as the winner;
model_a is the one shown first. If a question has votes on both orders of two answers, a win needs
both to agree; otherwise it is a tie.

Elo (K 32, start 1000) goes through the file in sequence and depends on it: its interval is over
shuffled orders. Bradley–Terry does not depend on the sequence; its interval is over questions. Also
printed are the bias towards the first answer and, with several judges, how far they agree."""
COMMANDS: dict[str, tuple[type[Options], str]] = {
    "answer": (AnswerOptions, ANSWER_DESCRIPTION),
    "judge": (JudgeOptions, JUDGE_DESCRIPTION),
    "rate": (RateOptions, RATE_DESCRIPTION),
}
EXAMPLES = """A tournament, with an answer file for each model:

  python -m evaluate.tournament answer --checkpoint runs/a --questions q.json --predictions a.jsonl
  python -m evaluate.tournament judge --answers a.jsonl b.jsonl --battles votes.jsonl \\
      --endpoint https://api.openai.com/v1 --judge gpt-4.1
  python -m evaluate.tournament rate --battles votes.jsonl

The judge's key comes from the environment variable OPENAI_API_KEY."""


def main() -> None:
    """Run the command that the first argument names."""
    command, options = parse_subcommand(
        sys.argv[1:], COMMANDS, program="evaluate.tournament", examples=EXAMPLES
    )
    # Imported here so that --help and invalid options answer without loading PyTorch and NumPy.
    run: Callable[[Any], None]
    if command == "answer":
        from evaluate.tournament.answer import run_answer as run
    elif command == "judge":
        from evaluate.tournament.judge import run_judge as run
    else:
        from evaluate.tournament.rate import run_rate as run
    run(options)


if __name__ == "__main__":
    run_main(main, decodes_batches=True)
