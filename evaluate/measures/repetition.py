"""Repetition in answers: the share that loops, and the share that ends by `<eos>`."""

from dataclasses import asdict

from common.errors import UserError
from common.machine import resolve_device
from data.kinds import find_kind, kind_names
from data.sources import find_source
from evaluate.input_records import read_usable_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.base import KindEvaluation
from evaluate.load_model import load_checkpoint
from evaluate.metrics.repetition import is_looping, measure_repetition
from evaluate.model_answer import ModelAnswer
from evaluate.options import RepetitionOptions
from evaluate.predictions import excerpt, read_predictions, resolve_model_fields
from evaluate.result import EvalResult, Row, drop_unanswered, report_result

# Number of looping answers that are printed.
NUM_EXAMPLES_SHOWN = 3
# Labels of the metrics on the terminal; the keys are those of the results file.
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
    """Measure the answers in a file or those of a checkpoint; report the result."""
    evaluate = evaluate_predictions if options.score else evaluate_checkpoint
    report_result(evaluate(options), options.json_file, options.predictions)


def evaluate_predictions(options: RepetitionOptions) -> EvalResult:
    """Measure the answers in the file of `--score`."""
    assert options.score is not None
    rows = read_predictions(options.score, ("prediction",))[: options.limit]
    metrics = _compute_metrics(rows)
    return EvalResult(
        lines=_format_report(str(options.score), metrics, rows),
        metrics={"measured": str(options.score), "answers": len(rows), **metrics},
        provenance=resolve_model_fields(options.score, rows),
        rows=rows,
    )


def evaluate_checkpoint(options: RepetitionOptions) -> EvalResult:
    """Let the checkpoint answer the records of `--source`, and measure the answers.

    Raises UserError if the kind of these records has no questions.
    """
    assert options.checkpoint is not None and options.source is not None
    device = resolve_device(options.device)
    evaluation = _find_evaluation_with_questions(options.source)
    records = read_usable_records(options.source, options.input, evaluation.kind, options.limit)
    loaded = load_checkpoint(options.checkpoint, options, device)
    answers = evaluation.generate_answers(
        loaded, records, max_new_tokens=options.max_new_tokens, batch=options.batch
    )
    rows = drop_unanswered(
        [_build_row(question, answer) for question, answer in answers],
        options.input,
        loaded.model.trained_context,
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


def _find_evaluation_with_questions(source: str) -> KindEvaluation:
    """Return the evaluation of the source's kind. Raises UserError if it has no questions."""
    kind = find_kind(find_source(source).kind)
    evaluation = find_evaluation(kind)
    if not evaluation.has_questions:
        evaluations = [find_evaluation(find_kind(name)) for name in kind_names()]
        measurable = [other.kind.name for other in evaluations if other.has_questions]
        raise UserError(
            f"--source {source} has {kind.name}; this measures {' or '.join(measurable)}"
        )
    return evaluation


def _build_row(question: str, answer: ModelAnswer | None) -> Row | None:
    """Return the line of a question in the predictions file, or None if it was not answered."""
    if answer is None:
        return None
    return {
        "input": question,
        "prediction": answer.text,
        "tokens": answer.num_tokens,
        "stopped": answer.has_eos,
    }


def _compute_metrics(rows: list[Row]) -> dict[str, float]:
    """Return the repetition metrics and, if all rows have them, the means of stopped and tokens."""
    metrics: dict[str, float] = asdict(measure_repetition([row["prediction"] for row in rows]))
    # The files of other programs may lack these fields.
    for key in ("stopped", "tokens"):
        if all(isinstance(row.get(key), bool | int) for row in rows):
            metrics[key] = sum(row[key] for row in rows) / len(rows)
    return metrics


def _format_report(run_label: str, metrics: dict[str, float], rows: list[Row]) -> list[str]:
    """Return the metrics and the first looping answers as lines to print."""
    lines = [f"{run_label}: {len(rows):,} answers"]
    for key, value in metrics.items():
        number_format = "10.1f" if key in ("characters", "tokens") else "10.2%"
        lines.append(f"{LABELS[key]:20}{value:{number_format}}")
    looping = [row["prediction"] for row in rows if is_looping(row["prediction"])]
    lines += [f"loops: {excerpt(answer)}" for answer in looping[:NUM_EXAMPLES_SHOWN]]
    return lines
