"""Ask every checkpoint of a run the same questions, and write its page."""

import hashlib
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.machine import resolve_device
from common.run_layout import RESULTS_DIR, RUN_FILE, WATCH_NAME, list_steps
from evaluate.kinds.question_sets import QuestionSet
from evaluate.partial_results import partial_results
from evaluate.report.write import write_page
from evaluate.result import EvalResult, report_result
from evaluate.watch.checkpoint_answers import answer_steps, read_earlier_answers
from evaluate.watch.options import WatchOptions
from evaluate.watch.page import build_page
from evaluate.watch.question_sets import load_question_sets
from evaluate.watch.result import SetResult, WatchResult, build_result, read_validation_losses
from model.checkpoint import locate


def watch_run(options: WatchOptions) -> None:
    """Ask the checkpoints that were not asked yet; write the results file and the page.

    Raises UserError if there is no run or no question.
    """
    run = options.run
    _check_run(run)
    device = resolve_device(options.device)
    question_sets = load_question_sets(options)
    settings = _describe_settings(options, question_sets)
    json_file = run / RESULTS_DIR / f"{WATCH_NAME}.json"
    earlier = read_earlier_answers(json_file, settings, question_sets)
    # Read before the checkpoints are asked, so that a damaged file stops the command at once.
    read_validation_losses(run)
    results = partial_results(json_file, settings)
    steps = answer_steps(options, question_sets, earlier, results, device)
    kept_steps = set(list_steps(run))
    result = build_result(run, steps, kept_steps, question_sets)
    notes = []
    if len(kept_steps) == 1:
        notes.append(
            f"{run} keeps one checkpoint: train with --checkpoint.keep all to compare several."
        )
    report_result(
        EvalResult(
            lines=[*_format_lines(result), *notes, *result.conclusions],
            metrics={**result.to_json(), "settings": settings},
            provenance={"run": str(run)},
            device=device,
        ),
        json_file,
    )
    title = f"Checkpoints of {run}"
    print(write_page(run / WATCH_NAME, title, build_page(result, title, notes)))


def _check_run(run: Path) -> None:
    """Raise UserError if `run` is not a run directory."""
    if (run / RUN_FILE).is_file():
        return
    suggestion = locate.suggest_run(run)
    if suggestion is not None:
        raise UserError(f"{run} does not exist: did you mean {suggestion}?")
    raise UserError(
        f"{run} is not a run: it has no {RUN_FILE}; name a folder that training wrote, such as "
        "runs/pretrain-sample"
    )


def _describe_settings(options: WatchOptions, question_sets: list[QuestionSet]) -> dict[str, Any]:
    """Return what the answers depend on, besides the weights."""
    # The text of questions can contain lone surrogates.
    digest = hashlib.sha256(repr(question_sets).encode("utf-8", "surrogatepass")).hexdigest()
    return {
        "questions": sum(len(question_set.questions) for question_set in question_sets),
        "questions_sha256": digest,
        "max_new_tokens": options.max_new_tokens,
        "quantize": options.quantize or "no",
        "kv_cache": options.kv_cache or "as weights",
    }


def _format_lines(result: WatchResult) -> list[str]:
    """Return a table of each set as lines to print, with a line for each step."""
    lines = [f"{result.run}: {len(result.steps)} checkpoints"]
    for number, set_result in enumerate(result.sets, 1):
        lines += ["", *_format_table(result, set_result, number)]
    return [*lines, ""]


def _format_table(result: WatchResult, set_result: SetResult, number: int) -> list[str]:
    """Return the heading of a set and the table of its figures."""
    question_set = set_result.question_set
    columns = [("loss", ["—" if loss is None else f"{loss:.4f}" for loss in result.losses])]
    for measure in question_set.measures:
        figures = set_result.figures[measure.key]
        columns.append((measure.key, [measure.format_figure(figure) for figure in figures]))
    widths = [2 + max(len(name), *map(len, cells)) for name, cells in columns]
    header = "".join(f"{name:>{width}}" for (name, _), width in zip(columns, widths, strict=True))
    lines = [
        f"set {number}: {question_set.label}, {len(question_set.questions)} "
        f"{question_set.question_name}s",
        f"{'step':>9}{header}",
    ]
    for index, entry in enumerate(result.steps):
        cells = "".join(
            f"{texts[index]:>{width}}" for (_, texts), width in zip(columns, widths, strict=True)
        )
        lines.append(f"{entry.step:>9,}{cells}")
    for measure in question_set.measures:
        if measure.key in (trivial := question_set.trivial_scores()):
            lines.append(f"without a model: {measure.label} {trivial[measure.key]}")
    return lines
