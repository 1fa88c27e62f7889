"""`python -m evaluate.repetition`: do answers repeat themselves, and do they end?"""

import argparse
from dataclasses import asdict
from pathlib import Path

from common.errors import UserError, run_main
from common.machine import resolve_device
from common.progress import progress_bar
from data.records import Conversation, Summary
from evaluate.cli import build_generation_parser, parse_eval_options
from evaluate.model_answers import (
    ModelAnswer,
    Question,
    answer_questions,
    extract_questions,
    summarize_articles,
)
from evaluate.predictions import excerpt, read_predictions, resolve_model_fields
from evaluate.runner import (
    EvalResult,
    LoadedCheckpoint,
    Row,
    drop_unanswered,
    load_checkpoint,
    report_result,
)
from evaluate.scores.repetition_metric import (
    MIN_LOOP_CHARACTERS,
    MIN_LOOP_REPEATS,
    is_looping,
    measure_repetition,
)
from evaluate.usable_records import read_records

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
  repeated 4-grams   fraction of the 4-grams that occurred before in the same answer
  distinct-1, -2     different characters (character bigrams) over all of them, for all answers
  loops              fraction of answers that repeat a stretch of text at least {MIN_LOOP_REPEATS}
                     times in a row, over at least {MIN_LOOP_CHARACTERS} characters
  stopped by <eos>   fraction of answers that ended by themselves
Answers are greedy, without any repetition penalty: to every turn of the conversations of --source
and --input after the true turns before it, or to the request for the title of each article. With
--score they are read from a file, together with "stopped", "tokens" and the model if all lines have
them."""


def main() -> None:
    """Run the command."""
    options = _parse_options()
    evaluate = evaluate_predictions if options.score else evaluate_checkpoint
    report_result(options, evaluate(options))


def evaluate_predictions(options: argparse.Namespace) -> EvalResult:
    """Measure the answers in the file of `--score`."""
    rows = read_predictions(options.score, ("prediction",))[: options.limit]
    metrics = _compute_metrics(rows)
    return EvalResult(
        lines=_format_report(str(options.score), metrics, rows),
        metrics={"measured": str(options.score), "answers": len(rows), **metrics},
        provenance=resolve_model_fields(options.score, rows),
        rows=rows,
    )


def evaluate_checkpoint(options: argparse.Namespace) -> EvalResult:
    """Let the checkpoint answer the records of `--source`, and measure the answers."""
    device = resolve_device(options.device)
    records = read_records(
        options.source, options.input, ("conversations", "summaries"), options.limit
    )
    articles = [record.article for record in records if isinstance(record, Summary)]
    questions = []
    for record in records:
        if isinstance(record, Conversation):
            questions += extract_questions(record)
    loaded = load_checkpoint(options.checkpoint, device, quantize=options.quantize)
    answers = _generate_answers(options, loaded, articles, questions)
    inputs = [*articles, *(question.question for question in questions)]
    rows = drop_unanswered(
        [_build_row(text, answer) for text, answer in zip(inputs, answers, strict=True)],
        options.input,
    )
    metrics = _compute_metrics(rows)
    run_label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    return EvalResult(
        lines=_format_report(run_label, metrics, rows),
        metrics={"measured": run_label, "answers": len(rows), **metrics},
        provenance=loaded.provenance,
        rows=rows,
        device=device,
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
            "name the answers to measure: --checkpoint RUN --source NAME --input FILE, "
            "or --score FILE.jsonl"
        )
    if options.checkpoint and not options.source:
        raise UserError("--checkpoint needs questions: --source redgpt --input FILE")
    return options


def _generate_answers(
    options: argparse.Namespace,
    loaded: LoadedCheckpoint,
    articles: list[str],
    questions: list[Question],
) -> list[ModelAnswer | None]:
    """Return the answers to all articles, then to all questions."""
    settings = {"max_new_tokens": options.max_new_tokens, "batch": options.batch}
    checkpoint = (loaded.model, loaded.tokenizer, loaded.template)
    with progress_bar("answering", len(articles) + len(questions), "answers") as bar:
        titles = summarize_articles(*checkpoint, articles, on_progress=bar.update, **settings)
        answers = answer_questions(*checkpoint, questions, on_progress=bar.update, **settings)
    return [*titles, *answers]


def _build_row(text: str, answer: ModelAnswer | None) -> Row | None:
    if answer is None:
        return None
    return {
        "input": text,
        "prediction": answer.text,
        "tokens": answer.num_tokens,
        "stopped": answer.has_eos,
    }


def _compute_metrics(rows: list[Row]) -> dict[str, float]:
    metrics: dict[str, float] = asdict(measure_repetition([row["prediction"] for row in rows]))
    # Files of other programs may lack both.
    for key in ("stopped", "tokens"):
        if all(isinstance(row.get(key), bool | int) for row in rows):
            metrics[key] = sum(row[key] for row in rows) / len(rows)
    return metrics


def _format_report(run_label: str, metrics: dict[str, float], rows: list[Row]) -> list[str]:
    lines = [f"{run_label}: {len(rows):,} answers"]
    for key, value in metrics.items():
        number_format = "10.1f" if key in ("characters", "tokens") else "10.2%"
        lines.append(f"{LABELS[key]:20}{value:{number_format}}")
    looping = [row["prediction"] for row in rows if is_looping(row["prediction"])]
    lines += [f"loops: {excerpt(answer)}" for answer in looping[:NUM_EXAMPLES_SHOWN]]
    return lines


if __name__ == "__main__":
    run_main(main)
