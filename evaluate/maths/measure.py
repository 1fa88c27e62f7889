"""Measure a model on maths problems: exact numbers, beside trivial methods."""

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from common.machine import resolve_device
from evaluate.answers import answer_resumably
from evaluate.kinds.conversations import Question
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.maths.numbers import last_number
from evaluate.maths.options import GENERATED, MathsOptions
from evaluate.maths.problems import Problem
from evaluate.maths.sources import load_problems
from evaluate.metrics.proportion import Proportion, compare_with_trivial
from evaluate.model_answer import ModelAnswer
from evaluate.partial_results import partial_results
from evaluate.predictions import excerpt
from evaluate.result import EvalResult, Row, drop_unanswered, report_result

NUM_EXAMPLES_SHOWN = 5
# The methods, and the heads of their columns.
METHODS = {
    "model": "model",
    "last_number": "last number of question",
    "most_frequent": "most frequent answer",
}


def run_maths(options: MathsOptions) -> None:
    """Score a checkpoint, or the trivial methods alone, on maths problems.

    Raises UserError if no problem fits the model's context.
    """
    problems = load_problems(options)
    if options.checkpoint is None:
        rows = _build_rows(problems, [None] * len(problems))
        report_result(_score_rows(options, rows), options.json_file)
        return
    device = resolve_device(options.device)
    loaded = load_checkpoint(options.checkpoint, options, device)
    output = options.json_file or options.predictions
    depends_on = {**loaded.identity, "max_new_tokens": options.max_new_tokens}
    results = partial_results(output, depends_on)
    answers = answer_resumably(
        results,
        "answering",
        loaded,
        [Question((), problem.question, "", "") for problem in problems],
        max_new_tokens=options.max_new_tokens,
        batch=options.batch,
    )
    all_rows = [
        row if answer is not None else None
        for row, answer in zip(_build_rows(problems, answers), answers, strict=True)
    ]
    rows = drop_unanswered(
        all_rows, options.input or (options.source,), loaded.model.trained_context
    )
    result = _score_rows(options, rows, len(all_rows) - len(rows), loaded, device)
    report_result(result, options.json_file, options.predictions)


def _build_rows(problems: Sequence[Problem], answers: Sequence[ModelAnswer | None]) -> list[Row]:
    """Return the lines of the predictions file; without the keys of an answer where it is None."""
    most_frequent = find_most_frequent(problems)
    rows = []
    for problem, answer in zip(problems, answers, strict=True):
        row: Row = {"question": problem.question, "answer": str(problem.answer)}
        if problem.operation:
            row |= {"operation": problem.operation, "difficulty": problem.difficulty}
        row["last_number"] = last_number(problem.question) == problem.answer
        row["most_frequent"] = most_frequent == problem.answer
        if answer is not None:
            number = last_number(answer.text)
            row |= {
                "prediction": answer.text,
                "number": str(number) if number is not None else None,
                "model": number == problem.answer,
                "stopped": answer.has_eos,
                "tokens": answer.num_tokens,
            }
        rows.append(row)
    return rows


def find_most_frequent(problems: Sequence[Problem]) -> Fraction:
    """Return the answer that most of the problems have; of several, the first."""
    return Counter(problem.answer for problem in problems).most_common(1)[0][0]


def _score_rows(
    options: MathsOptions,
    rows: list[Row],
    num_left_out: int = 0,
    loaded: LoadedCheckpoint | None = None,
    device: Any = None,
) -> EvalResult:
    """Return the report of all rows, which have answers of a model if there is one.

    `num_left_out` problems have no row, because they do not fit the context of the model.
    """
    methods = list(METHODS) if loaded is not None else list(METHODS)[1:]
    most_frequent = next((row["answer"] for row in rows if row["most_frequent"]), None)
    if options.source in GENERATED:
        data_label = f"generated {options.source}, difficulty 1 to {options.difficulty}"
        data_label += f", seed {options.seed}"
    else:
        data_label = f"{' '.join(options.input)} ({options.source})"
    run_label = f"{options.checkpoint or 'no model'} on {data_label}"
    headline = f"{run_label}: {len(rows):,} problems"
    if loaded is not None:
        headline += f", greedy, at most {options.max_new_tokens} tokens"
    lines = [
        headline,
        f"{'right answers, %':40}" + "".join(f"{METHODS[name]:>24}" for name in methods),
    ]
    metrics: dict[str, Any] = {
        "measured": run_label,
        "questions": len(rows),
        "left_out": num_left_out,
        "most_frequent_answer": most_frequent,
    }
    if options.source in GENERATED:
        metrics |= {"difficulty": options.difficulty, "seed": options.seed}

    def add(label: str, selected: Sequence[Row]) -> dict[str, dict[str, float]]:
        shares = {name: _share([row[name] for row in selected]) for name in methods}
        cells = "".join(f"{share!s:>24}" for share in shares.values())
        lines.append(f"{f'{label} ({len(selected):,})':40}{cells}")
        return {name: share.to_json() for name, share in shares.items()}

    metrics["right"] = add("all", rows)
    for key in ("operation", "difficulty"):
        groups = sorted({row[key] for row in rows if key in row})
        if groups:
            metrics[f"by_{key}"] = {
                str(group): add(
                    f"  difficulty {group}" if key == "difficulty" else f"  {group}",
                    [row for row in rows if row[key] == group],
                )
                for group in groups
            }
    lines.append(f"the most frequent answer of these problems is {most_frequent}")
    if loaded is not None:
        lines.append(_compare_with_trivial(metrics["right"]))
        without = _share([row["number"] is None for row in rows])
        stopped = _share([row["stopped"] for row in rows])
        metrics |= {"no_number": without.to_json(), "stopped": stopped.to_json()}
        lines += [f"answers without a number: {without}", f"stopped by <eos>: {stopped}"]
        lines += [
            f"{excerpt(row['question'])} → {excerpt(row['prediction'])!r}, true: {row['answer']}"
            for row in rows[:NUM_EXAMPLES_SHOWN]
        ]
    return EvalResult(
        lines=lines,
        metrics=metrics,
        provenance=loaded.provenance if loaded is not None else {},
        rows=rows,
        device=device,
    )


def _share(flags: Sequence[bool]) -> Proportion:
    return Proportion(sum(flags), len(flags))


def _compare_with_trivial(right: dict[str, dict[str, float]]) -> str:
    """Return a line that says whether the model beats the best trivial method."""
    best = max(right["last_number"]["rate"], right["most_frequent"]["rate"])
    verdict = compare_with_trivial(right["model"], best)
    return f"the model is {verdict} the best trivial method"
