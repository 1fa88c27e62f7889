"""`python -m evaluate.repetition`: how much a checkpoint's answers repeat themselves, and whether they end."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import describe, resolve_device
from common.progress import progress
from data.records import Conversation, Summary
from evaluate.model_answers import Answer, ask, questions_of, summarise
from evaluate.cli import answering_parser, load, parse
from evaluate.predictions import excerpt, model_of, read_predictions, write_predictions
from evaluate.usable_records import read_records
from evaluate.scores.repetition import LOOP_CHARACTERS, LOOP_TIMES, loops, measure
from model.chat_template.template import Template

SHOWN = 3
LABELS = {
    "repeated_4grams": "repeated 4-grams", "distinct_1": "distinct-1", "distinct_2": "distinct-2", "loops": "loops",
    "empty": "empty", "characters": "mean characters", "stopped": "stopped by <eos>", "tokens": "mean tokens",
}
DESCRIPTION = f"""Measure repetition in answers, on characters without whitespace:
  repeated 4-grams   of all 4-grams, the share that occurred before in the same answer
  distinct-1, -2     different characters (pairs of neighbours) over all of them, all answers together
  loops              share of answers in which some stretch stands at least {LOOP_TIMES} times in a row and so fills at
                     least {LOOP_CHARACTERS} characters
  stopped by <eos>   share of answers that ended by themselves
Answers are greedy, without any penalty against repetition: to every turn of the conversations of --source and --input,
after the true turns before it, or to the request for each article's title; or they are read from a file (--score), where
"stopped" and "tokens" are taken from the lines if all have them, and so is which model answered."""


def main() -> None:
    """Entry point."""
    options = _options()
    device = None if options.score else resolve_device(options.device)
    if device is None:
        what, rows = str(options.score), read_predictions(options.score, ("prediction",))[: options.limit]
        facts = model_of(options.score, rows)
    else:
        what = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
        facts, rows = _answer(options, device)
    figures = _figures(rows)
    print(f"{what}: {len(rows):,} answers")
    for key, value in figures.items():
        print(f"{LABELS[key]:20}{value:10.1f}" if key in ("characters", "tokens") else f"{LABELS[key]:20}{value:10.2%}")
    for row in [row for row in rows if loops(row["prediction"])][:SHOWN]:
        print(f"loops: {excerpt(row['prediction'])}")
    if options.predictions:
        write_predictions(options.predictions, rows, facts)
    if options.json:
        write_json(options.json, {**facts, "measured": what, "answers": len(rows), **figures, "made": describe(device)})


def _options() -> argparse.Namespace:
    parser = answering_parser("repetition", DESCRIPTION, max_new_tokens=256)
    parser.add_argument("--score", type=Path, metavar="FILE.jsonl", help='measure the "prediction" of each line of a file')
    options = parse(parser)
    if bool(options.score) == bool(options.checkpoint):
        raise UserError("say what is measured: --checkpoint RUN --source NAME --input FILE, or --score FILE.jsonl")
    if options.checkpoint and not options.source:
        raise UserError("--checkpoint needs questions: --source redgpt --input FILE")
    return options


def _answer(options: argparse.Namespace, device: Any) -> tuple[dict[str, str | int], list[dict[str, Any]]]:
    """Which checkpoint it was, and its answers to the source's questions."""
    records = read_records(options.source, options.input, ("conversations", "summaries"), options.limit)
    loaded = load(options, device)
    template = Template.load(loaded.folder)
    articles = [record for record in records if isinstance(record, Summary)]
    questions = [each for record in records if isinstance(record, Conversation) for each in questions_of(record)]
    settings = {"max_new_tokens": options.max_new_tokens, "batch": options.batch}
    asked = [*(each.article for each in articles), *(each.question for each in questions)]
    with progress("answering", len(asked), "answers") as bar:
        answers: list[Answer | None] = [
            *summarise(loaded.model, loaded.tokenizer, template, [each.article for each in articles], on_progress=bar.update,
                       **settings),
            *ask(loaded.model, loaded.tokenizer, template, questions, on_progress=bar.update, **settings),
        ]
    rows = [{"input": text, "prediction": answer.text, "tokens": answer.tokens, "stopped": answer.stopped}
            for text, answer in zip(asked, answers, strict=True) if answer]
    if missing := len(asked) - len(rows):
        print(f"left out, no room for an answer in the context: {missing:,} questions")
    if not rows:
        raise UserError(f"--input {' '.join(options.input)}: no question of it fits the model's context")
    return loaded.facts, rows


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    figures: dict[str, float] = asdict(measure([row["prediction"] for row in rows]))
    # Another program's file may say neither.
    for key in ("stopped", "tokens"):
        if all(isinstance(row.get(key), bool | int) for row in rows):
            figures[key] = sum(row[key] for row in rows) / len(rows)
    return figures


if __name__ == "__main__":
    run_main(main)
