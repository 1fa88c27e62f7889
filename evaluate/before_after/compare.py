"""Measure a base and the run that was tuned from it on the same records, and compare them."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.machine import resolve_device
from common.run_layout import BEFORE_AFTER_NAME, RESULTS_DIR
from evaluate.answers import generate_resumably
from evaluate.before_after.changes import (
    NEW_TASK_LOSS,
    OLD_TASK_LOSS,
    TaskComparison,
    compare_losses,
    compare_scores,
)
from evaluate.before_after.page import build_section, format_lines
from evaluate.before_after.tasks import Task, load_tasks
from evaluate.kinds.question_sets import keep_answered
from evaluate.load_model import LoadedCheckpoint, load_checkpoint
from evaluate.metrics.language_model import LMScore
from evaluate.model_answer import ModelAnswer
from evaluate.options import ReportOptions
from evaluate.partial_results import PartialResults, partial_results
from evaluate.report.render import Block
from evaluate.result import EvalResult, report_result
from model.checkpoint import locate, weights
from model.llama import Llama
from model.tokenizer import load_tokenizer

# Number of answers that are decoded together.
BATCH = 16


@dataclass(frozen=True)
class Outcome:
    """The answers of one model, and its scores, for each task."""

    provenance: dict[str, str | int]
    answers: list[list[ModelAnswer | None]]
    scores: list[list[LMScore]]

    @property
    def title(self) -> str:
        """Return the name of the checkpoint, with its step if known."""
        step = self.provenance.get("step")
        suffix = f" (step {step:,})" if step is not None else ""
        return f"{self.provenance['checkpoint']}{suffix}"


def compare_with_base(options: ReportOptions, run: Path) -> list[Block]:
    """Compare a run, or the step of it that the options name, with `--before`.

    Prints the comparison, writes it to `results/before-after.json` of the run, and returns it as a
    section of a page. An interrupted call goes on where it was. Raises UserError if the two are the
    same model or have different tokenizers, or if there is nothing to compare them on.
    """
    assert options.before is not None
    checkpoint = options.runs[0]
    _check_pair(options.before, checkpoint)
    device = resolve_device(options.device)
    tasks = load_tasks(options.before, run, options.records_per_task)
    json_file = run / RESULTS_DIR / f"{BEFORE_AFTER_NAME}.json"
    settings = {
        "max_new_tokens": options.answer_tokens,
        "quantize": options.quantize or "no",
        "kv_cache": options.kv_cache or "as weights",
    }
    results = partial_results(json_file, settings)
    before, after = (
        _measure_model(name, path, tasks, results, options, device)
        for name, path in (("before", options.before), ("after", checkpoint))
    )
    comparisons = [_compare_task(task, before, after, number) for number, task in enumerate(tasks)]
    report_result(
        EvalResult(
            lines=format_lines(before.title, after.title, comparisons),
            metrics=_to_json(before, comparisons) | {"settings": settings},
            provenance=after.provenance,
            device=device,
        ),
        json_file,
    )
    return build_section(before.title, after.title, comparisons)


def _check_pair(base: Path, checkpoint: Path) -> None:
    """Raise UserError if two checkpoints cannot be compared, before anything is measured."""
    folders = [locate.resolve_checkpoint(path) for path in (base, checkpoint)]
    digests = [locate.weights_sha256(folder) for folder in folders]
    if digests[0] == digests[1]:
        raise UserError(
            f"--before {base} has the same weights as {checkpoint}: name the model that it was "
            "tuned from"
        )
    fingerprints = [load_tokenizer(folder).fingerprint for folder in folders]
    if fingerprints[0] != fingerprints[1]:
        raise UserError(
            f"--before {base} has another tokenizer than {checkpoint}, so that their losses cannot "
            "be compared: name the model that it was tuned from"
        )


def _measure_model(
    name: str,
    path: Path,
    tasks: Sequence[Task],
    results: PartialResults,
    options: ReportOptions,
    device: torch.device,
) -> Outcome:
    """Return the answers and the scores of one model, which `name` tells from the other."""
    loaded = load_checkpoint(path, options, device)
    assert options.before is not None
    _limit_context(loaded.model, [options.before, options.runs[0]])
    # The digest tells the results of these weights from those of a run that was trained again.
    depends_on = {**loaded.identity, "context": loaded.model.trained_context}
    identity = json.dumps(depends_on, sort_keys=True).encode()
    digest = hashlib.sha256(identity).hexdigest()[:8]
    answers: list[list[ModelAnswer | None]] = []
    scores = []
    for number, task in enumerate(tasks, 1):
        task_answers: list[ModelAnswer | None] = []
        if task.question_set is not None:
            generate = partial(
                task.question_set.generate,
                loaded,
                max_new_tokens=options.answer_tokens,
                batch=BATCH,
            )
            task_answers = generate_resumably(
                results,
                f"{name}, task {number}: answers ({digest})",
                task.question_set.questions,
                generate,
                batch=BATCH,
            )
        answers.append(task_answers)
        rows = results.compute(
            f"{name}, task {number}: loss ({digest})",
            task.records,
            partial(_score_rows, loaded, task),
            unit="records",
        )
        scores.append([LMScore(nats, num_tokens) for nats, num_tokens in rows])
    return Outcome(loaded.provenance, answers, scores)


def _limit_context(model: Llama, checkpoints: Sequence[Path]) -> None:
    """Lower a model's `trained_context` to the shortest of the checkpoints'.

    Otherwise the loss of one model would be of more text than that of the other: of later answers,
    and of articles that are cut less.
    """
    for checkpoint in checkpoints:
        for folder in locate.adapter_chain(checkpoint):
            weights.limit_trained_context(model, folder)


def _score_rows(
    loaded: LoadedCheckpoint, task: Task, records: Sequence[Any]
) -> list[tuple[float, int]]:
    """Return the nats and the number of tokens of each record, as JSON values."""
    scores = task.evaluation.score_each(loaded, records)
    return [(score.total_nats, score.num_tokens) for score in scores]


def _compare_task(task: Task, before: Outcome, after: Outcome, number: int) -> TaskComparison:
    """Return the changes in the task with this index."""
    question_set = task.question_set
    answers: list[list[ModelAnswer]] = []
    changes = []
    pairs = list(zip(before.answers[number], after.answers[number], strict=True))
    if question_set is not None and all(None in pair for pair in pairs):
        print(f"{task.label}: no question fits the context of both models: only the loss is left")
        question_set = None
    if question_set is not None:
        question_set, answers = keep_answered(
            question_set, [before.answers[number], after.answers[number]]
        )
        scores = [question_set.score(model_answers) for model_answers in answers]
        changes += [
            compare_scores(measure, scores[0][measure.key], scores[1][measure.key])
            for measure in question_set.measures
        ]
    loss = compare_losses(
        OLD_TASK_LOSS if task.is_old else NEW_TASK_LOSS,
        before.scores[number],
        after.scores[number],
    )
    if loss is not None:
        changes.append(loss)
    return TaskComparison(task, changes, question_set, answers)


def _to_json(before: Outcome, comparisons: Sequence[TaskComparison]) -> dict[str, Any]:
    """Return the contents of the results file.

    The answers are a list, which a report does not show: they are in the section.
    """
    answers = []
    for comparison in comparisons:
        if (question_set := comparison.question_set) is not None:
            first, second = ([answer.text for answer in texts] for texts in comparison.answers)
            answers.append(
                {
                    "task": comparison.task.name,
                    "questions": question_set.texts,
                    "references": question_set.references,
                    "before": first,
                    "after": second,
                }
            )
    return {
        "before": before.provenance,
        "conclusions": ". ".join(
            line for comparison in comparisons for line in comparison.conclusions
        ),
        "tasks": {comparison.task.name: comparison.to_json() for comparison in comparisons},
        "answers": answers,
    }
