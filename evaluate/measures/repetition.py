"""Repetition in the answers of a checkpoint, and whether they end."""

from dataclasses import asdict
from typing import Any

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment, resolve_device
from common.progress import progress_bar
from data.records import Conversation, Summary
from evaluate.load_model import load_checkpoint
from evaluate.model_answers import (
    ModelAnswer,
    answer_questions,
    extract_questions,
    summarize_articles,
)
from evaluate.options import RepetitionOptions
from evaluate.predictions import excerpt, read_predictions, resolve_model_fields, write_predictions
from evaluate.scores.repetition import (
    is_looping,
    measure_repetition,
)
from evaluate.usable_records import read_records
from model.chat_template.template import load_template

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


def run_repetition(options: RepetitionOptions) -> None:
    """Measure answers and print the figures; write the files that the options name."""
    device = None if options.score else resolve_device(options.device)
    if options.score:
        run_label = str(options.score)
        rows = read_predictions(options.score, ("prediction",))[: options.limit]
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
    if options.json_file:
        write_json(
            options.json_file,
            {
                **provenance,
                "measured": run_label,
                "answers": len(rows),
                **metrics,
                "made": collect_environment(device),
            },
        )


def _generate_answers(
    options: RepetitionOptions, device: Any
) -> tuple[dict[str, str | int], list[dict[str, Any]]]:
    """Which checkpoint it was, and its answers to the source's questions."""
    assert options.checkpoint is not None
    assert options.source is not None
    records = read_records(
        options.source, options.input, ("conversations", "summaries"), options.limit
    )
    loaded = load_checkpoint(options.checkpoint, options.quantize, device)
    template = load_template(loaded.folder)
    articles = [record for record in records if isinstance(record, Summary)]
    questions = [
        each
        for record in records
        if isinstance(record, Conversation)
        for each in extract_questions(record)
    ]
    settings = {"max_new_tokens": options.max_new_tokens, "batch": options.batch}
    input_texts = [*(each.article for each in articles), *(each.question for each in questions)]
    with progress_bar("answering", len(input_texts), "answers") as bar:
        answers: list[ModelAnswer | None] = [
            *summarize_articles(
                loaded.model,
                loaded.tokenizer,
                template,
                [each.article for each in articles],
                on_progress=bar.update,
                **settings,
            ),
            *answer_questions(
                loaded.model,
                loaded.tokenizer,
                template,
                questions,
                on_progress=bar.update,
                **settings,
            ),
        ]
    rows = [
        {
            "input": text,
            "prediction": answer.text,
            "tokens": answer.num_tokens,
            "stopped": answer.has_eos,
        }
        for text, answer in zip(input_texts, answers, strict=True)
        if answer
    ]
    if num_skipped := len(input_texts) - len(rows):
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
