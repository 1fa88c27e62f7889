"""`python -m evaluate.repetition`: how much a checkpoint's answers repeat themselves, and whether they end."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import UserError, run_main
from common.files import write_json
from common.machine import collect_environment, resolve_device
from data.kinds import find_kind, kind_names
from data.sources import find_source
from evaluate.cli import build_generation_parser, load_checkpoint, parse_eval_options
from evaluate.kinds import find_evaluation
from evaluate.predictions import excerpt, read_predictions, resolve_model_fields, write_predictions
from evaluate.scores.repetition import (
    MIN_LOOP_CHARACTERS,
    MIN_LOOP_REPEATS,
    is_looping,
    measure_repetition,
)
from evaluate.usable_records import read_usable_records

NUM_EXAMPLES_SHOWN = 3
LABELS = {
    "repeated_4grams": "repeated 4-grams",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "loops": "loops",
    "empty": "empty",
    "characters": "mean characters",
    "stopped": "stopped by <eos>",
    "tokens": "mean tokens",
}
DESCRIPTION = f"""Measure repetition in answers, on characters without whitespace:
  repeated 4-grams   of all 4-grams, the share that occurred before in the same answer
  distinct-1, -2     different characters (pairs of neighbours) over all of them, all answers together
  loops              share of answers in which some stretch stands at least {MIN_LOOP_REPEATS} times in a row and so fills at
                     least {MIN_LOOP_CHARACTERS} characters
  stopped by <eos>   share of answers that ended by themselves
Answers are greedy, without any penalty against repetition: to every turn of the conversations of --source and --input,
after the true turns before it, or to the request for each article's title; or they are read from a file (--score), where
"stopped" and "tokens" are taken from the lines if all have them, and so is which model answered."""


def main() -> None:
    """Entry point."""
    options = _parse_options()
    device = None if options.score else resolve_device(options.device)
    if device is None:
        run_label, rows = (
            str(options.score),
            read_predictions(options.score, ("prediction",))[: options.limit],
        )
        provenance = resolve_model_fields(options.score, rows)
    else:
        run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
        provenance, rows = _generate_answers(options, device)
    metrics = _compute_metrics(rows)
    print(f"{run_label}: {len(rows):,} answers")
    for key, value in metrics.items():
        print(
            f"{LABELS[key]:20}{value:10.1f}"
            if key in ("characters", "tokens")
            else f"{LABELS[key]:20}{value:10.2%}"
        )
    for row in [row for row in rows if is_looping(row["prediction"])][:NUM_EXAMPLES_SHOWN]:
        print(f"loops: {excerpt(row['prediction'])}")
    if options.predictions:
        write_predictions(options.predictions, rows, provenance)
    if options.json:
        write_json(
            options.json,
            {
                **provenance,
                "measured": run_label,
                "answers": len(rows),
                **metrics,
                "made": collect_environment(device),
            },
        )


def _parse_options() -> argparse.Namespace:
    parser = build_generation_parser("repetition", DESCRIPTION, max_new_tokens=256)
    parser.add_argument(
        "--score",
        type=Path,
        metavar="FILE.jsonl",
        help='measure the "prediction" of each line of a file',
    )
    options = parse_eval_options(parser)
    if bool(options.score) == bool(options.checkpoint):
        raise UserError(
            "say what is measured: --checkpoint RUN --source NAME --input FILE, or --score FILE.jsonl"
        )
    if options.checkpoint and not options.source:
        raise UserError("--checkpoint needs questions: --source redgpt --input FILE")
    return options


def _generate_answers(
    options: argparse.Namespace, device: Any
) -> tuple[dict[str, str | int], list[dict[str, Any]]]:
    """Return which checkpoint it was, and its answers to the questions of the source."""
    kind = find_kind(find_source(options.source).kind)
    evaluation = find_evaluation(kind)
    if not evaluation.has_questions:
        askable = [
            name for name in kind_names() if find_evaluation(find_kind(name)).has_questions
        ]
        raise UserError(
            f"--source {options.source} has {kind.name}; this measures {' or '.join(askable)}"
        )
    records = read_usable_records(options.source, options.input, kind, options.limit)
    loaded = load_checkpoint(options, device)
    answers = evaluation.generate_answers(
        loaded, records, max_new_tokens=options.max_new_tokens, batch=options.batch
    )
    rows = [
        {
            "input": text,
            "prediction": answer.text,
            "tokens": answer.num_tokens,
            "stopped": answer.has_eos,
        }
        for text, answer in answers
        if answer
    ]
    if num_skipped := len(answers) - len(rows):
        print(f"left out, no room for an answer in the context: {num_skipped:,} questions")
    if not rows:
        raise UserError(
            f"--input {' '.join(options.input)}: no question of it fits the model's context"
        )
    return loaded.provenance, rows


def _compute_metrics(rows: list[dict[str, Any]]) -> dict[str, float]:
    metrics: dict[str, float] = asdict(measure_repetition([row["prediction"] for row in rows]))
    # Another program's file may say neither.
    for key in ("stopped", "tokens"):
        if all(isinstance(row.get(key), bool | int) for row in rows):
            metrics[key] = sum(row[key] for row in rows) / len(rows)
    return metrics


if __name__ == "__main__":
    run_main(main)
