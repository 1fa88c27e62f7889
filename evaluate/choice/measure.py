"""Score the options of multiple-choice questions, and report accuracies beside trivial methods."""

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from common.machine import resolve_device
from evaluate.choice.conventions import Request, request_builder
from evaluate.choice.options import ChoiceOptions
from evaluate.choice.questions import LETTERS, ChoiceQuestion, read_questions, read_shots
from evaluate.choice.subjects import find_categories
from evaluate.choice.trivial import trivial_scores
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.metrics.continuations import Continuations, score_continuations
from evaluate.metrics.proportion import Proportion, compare_with_trivial
from evaluate.partial_results import PartialResults, partial_results
from evaluate.predictions import excerpt
from evaluate.result import EvalResult, Row, report_result

# Questions between two writes of the partial results.
CHUNK_QUESTIONS = 256
# More subjects than this are not printed, only written to --json.
MAX_SUBJECTS_SHOWN = 80


def run_choice(options: ChoiceOptions) -> None:
    """Score the options of the questions; report the result.

    Without a checkpoint only the trivial methods are reported.
    """
    questions = _limit(read_questions(options.source, options.input), options.limit)
    if options.checkpoint is None:
        report_result(_report_trivial(options, questions), options.json_file)
        return
    shots_by_subject = _choose_shots(options, questions)
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    build = request_builder(options.convention, loaded.model, loaded.tokenizer, loaded.template)
    requests = [
        build(
            question,
            # Files of examples may have the question itself.
            [
                shot
                for shot in shots_by_subject.get(question.subject, ())
                if (shot.question, shot.passage) != (question.question, question.passage)
            ],
        )
        for question in questions
    ]
    num_cut = sum(request.is_cut for request in requests)
    if num_cut:
        print(f"longer than the context, without beginning or some examples: {num_cut:,} questions")
    output = options.json_file or options.predictions
    results = partial_results(output, dict(loaded.identity))
    rows = _score_requests(options, loaded, results, questions, requests)
    metrics = {"cut": num_cut, **_compute_metrics(options.source, questions, rows)}
    label = f"{options.checkpoint} on {' '.join(options.input)} ({options.source})"
    headline = f"{label}: {len(questions):,} questions, {_describe_convention(options)}"
    result = EvalResult(
        lines=[headline, *_format_report(metrics, questions, rows)],
        metrics={
            "measured": label,
            "convention": options.convention,
            "shots": options.shots,
            "shot_seed": options.shot_seed,
            **metrics,
        },
        provenance=loaded.provenance,
        rows=rows,
        device=device,
    )
    report_result(result, options.json_file, options.predictions)


def _limit(questions: list[ChoiceQuestion], limit: int | None) -> list[ChoiceQuestion]:
    """Return the first `limit` questions of each subject (None: all)."""
    counts: dict[str, int] = defaultdict(int)
    kept = []
    for question in questions:
        counts[question.subject] += 1
        if limit is None or counts[question.subject] <= limit:
            kept.append(question)
    return kept


def _choose_shots(
    options: ChoiceOptions, questions: Sequence[ChoiceQuestion]
) -> dict[str, list[ChoiceQuestion]]:
    """Return the solved examples for the questions of each subject.

    They are those of the subject or, if the files of examples have none of a subject, of all.
    """
    if not options.shots:
        return {}
    examples = read_shots(options.source, options.input, options.shot_input)
    chosen = {}
    for subject in dict.fromkeys(question.subject for question in questions):
        own = [example for example in examples if example.subject == subject] or examples
        if options.shot_seed is not None:
            own = random.Random(f"{options.shot_seed} {subject}").sample(own, len(own))
        chosen[subject] = own[: options.shots]
    return chosen


def _score_requests(
    options: ChoiceOptions,
    loaded: LoadedCheckpoint,
    results: PartialResults,
    questions: Sequence[ChoiceQuestion],
    requests: Sequence[Request],
) -> list[Row]:
    """Return the line of each question in the predictions file, with the scores of its options."""

    def score(chunk: Sequence[Continuations]) -> list[list[float]]:
        return score_continuations(loaded.model, chunk)

    with_question = results.compute(
        "choosing",
        [request.with_question for request in requests],
        score,
        chunk_size=CHUNK_QUESTIONS,
    )
    priors = [request.without_question for request in requests]
    # Either all requests have one without the question or, for letters, none.
    without_question: Sequence[list[float] | None] = results.compute(
        "options alone",
        [prior for prior in priors if prior is not None],
        score,
        chunk_size=CHUNK_QUESTIONS,
    ) or [None] * len(requests)
    rows = []
    for question, scores, prior in zip(questions, with_question, without_question, strict=True):
        row: Row = {
            "subject": question.subject,
            "question": question.question,
            "options": list(question.options),
            "answer": LETTERS[question.answer],
            "log_likelihoods": scores,
        }
        if prior is None:
            row["predicted"] = {"letter": _predict(scores)}
        else:
            lengths = [max(len(option), 1) for option in question.options]
            row["predicted"] = {
                "per character": _predict(np.array(scores) / lengths),
                "PMI": _predict(np.array(scores) - prior),
            }
            row["log_likelihoods_alone"] = prior
        rows.append(row)
    return rows


def _predict(scores: Sequence[float] | np.ndarray) -> str:
    """Return the letter of the highest score, the first of equal ones."""
    return LETTERS[int(np.argmax(scores))]


def _describe_convention(options: ChoiceOptions) -> str:
    shots = f"{options.shots} solved examples" if options.shots else "no solved examples"
    if options.shots and options.shot_seed is not None:
        shots += f" drawn with seed {options.shot_seed}"
    return f"convention {options.convention}, {shots}"


def _compute_metrics(
    source: str, questions: Sequence[ChoiceQuestion], rows: Sequence[Row]
) -> dict[str, Any]:
    """Return the figures of each way to predict, and those of the trivial methods."""
    trivial = {name: score / len(questions) for name, score in trivial_scores(questions).items()}
    metrics: dict[str, Any] = {"questions": len(questions), "trivial": trivial, "accuracy": {}}
    for scoring in rows[0]["predicted"]:
        by_subject: dict[str, Proportion] = {}
        by_category: dict[str, Proportion] = {}
        for row in rows:
            one = Proportion(row["predicted"][scoring] == row["answer"], 1)
            subject = row["subject"]
            by_subject[subject] = by_subject.get(subject, Proportion(0, 0)) + one
            for category in find_categories(source, subject):
                by_category[category] = by_category.get(category, Proportion(0, 0)) + one
        total = sum(by_subject.values(), Proportion(0, 0))
        predicted = [row["predicted"][scoring] for row in rows]
        metrics["accuracy"][scoring] = {
            **total.to_json(),
            "mean_of_subjects": float(np.mean([part.rate for part in by_subject.values()])),
            "above_trivial": total.interval[0] > max(trivial.values()),
            "predicted_letters": {
                letter: predicted.count(letter) / len(rows)
                for letter in LETTERS[: max(len(question.options) for question in questions)]
            },
            "categories": {name: part.to_json() for name, part in sorted(by_category.items())},
            "subjects": {name: part.to_json() for name, part in by_subject.items()},
        }
    return metrics


def _format_report(
    metrics: dict[str, Any], questions: Sequence[ChoiceQuestion], rows: Sequence[Row]
) -> list[str]:
    """Return the tables, what the trivial methods reach, and whether the model is above it."""
    accuracy = metrics["accuracy"]
    lines = [f"{'':34}{'n':>7}" + "".join(f"{scoring:>24}" for scoring in accuracy)]
    first = next(iter(accuracy.values()))
    for part in ("subjects", "categories"):
        names = list(first[part])
        if len(names) > 1 and (part == "categories" or len(names) <= MAX_SUBJECTS_SHOWN):
            for name in names:
                lines.append(_row(name, [figures[part][name] for figures in accuracy.values()]))
    lines.append(_row("all questions", list(accuracy.values())))
    if len(first["subjects"]) > 1:
        means = "".join(f"{figures['mean_of_subjects']:24.1%}" for figures in accuracy.values())
        lines.append(f"{'mean of the subjects':34}{len(first['subjects']):7,}{means}")
    lines += _format_trivial(metrics["trivial"])
    best_name = max(metrics["trivial"], key=metrics["trivial"].__getitem__)
    for scoring, figures in accuracy.items():
        shares = "  ".join(
            f"{letter} {share:.0%}" for letter, share in figures["predicted_letters"].items()
        )
        lines.append(f"predicted, {scoring}: {shares}")
        best = metrics["trivial"][best_name]
        lines.append(
            f"{scoring}: {figures['rate']:.1%} is {compare_with_trivial(figures, best)} the best "
            f"trivial method ({best_name}, {best:.1%})"
        )
    question, row = questions[0], rows[0]
    lines.append(
        f"first question: {excerpt(question.question)} → "
        + ", ".join(f"{letter} ({scoring})" for scoring, letter in row["predicted"].items())
        + f"; true: {row['answer']} {excerpt(question.options[question.answer])}"
    )
    return lines


def _row(name: str, figures: Sequence[dict[str, Any]]) -> str:
    cells = ""
    for part in figures:
        text = f"{part['rate']:.1%} ({part['low']:.1%} – {part['high']:.1%})"
        cells += f"{text:>24}"
    return f"{name:34}{figures[0]['questions']:7,}{cells}"


def _format_trivial(trivial: dict[str, float]) -> list[str]:
    return [f"{name:34}{'':7}{rate:24.1%}" for name, rate in trivial.items()]


def _report_trivial(options: ChoiceOptions, questions: Sequence[ChoiceQuestion]) -> EvalResult:
    """Return the result without a model."""
    scores = trivial_scores(questions)
    trivial = {name: score / len(questions) for name, score in scores.items()}
    label = f"{' '.join(options.input)} ({options.source})"
    return EvalResult(
        lines=[
            f"without a model, on {label}: {len(questions):,} questions",
            *_format_trivial(trivial),
        ],
        metrics={"measured": label, "questions": len(questions), "trivial": trivial},
        provenance={},
    )
