"""Averages of the last checkpoints of a run beside its newest checkpoint, on its dev splits."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from common.errors import UserError
from common.machine import resolve_device
from data.records import Record
from data.shards import ShardSet, load_run_shard_sets
from evaluate.before_after.changes import NEW_TASK_LOSS, Change, compare_losses, compare_scores
from evaluate.input_records import read_split_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.question_sets import QuestionSet, keep_answered
from evaluate.load_model import LoadedCheckpoint
from evaluate.metrics.language_model import LMScore
from evaluate.metrics.rouge_table import find_rouge_case
from evaluate.model_answer import ModelAnswer
from evaluate.options import AverageOptions
from evaluate.result import EvalResult, report_result
from model.checkpoint import locate
from model.checkpoint.averaging import average_checkpoints, find_last_checkpoints


@dataclass(frozen=True)
class DevTask:
    """The first dev records of a shard set, and the questions about them, if they have any."""

    shards: ShardSet
    records: list[Record]
    question_set: QuestionSet | None


@dataclass(frozen=True)
class Outcome:
    """What one model does on the records of each task."""

    losses: list[list[LMScore]]
    answers: list[list[ModelAnswer | None]]


def compare_averages(options: AverageOptions) -> None:
    """Score the newest checkpoint and the averages, and report the differences.

    Raises UserError if the run keeps fewer checkpoints, or if it has no dev records.
    """
    run = options.checkpoint
    folders = find_last_checkpoints(run, max(options.last))
    tasks = _load_tasks(run, options.limit)
    device = resolve_device(options.device)
    newest = _measure(folders[-1:], tasks, options, device)
    provenance = {"checkpoint": str(run), "step": locate.read_step(folders[-1])}
    lines = []
    metrics: dict[str, Any] = {"newest": folders[-1].name, "averages": {}}
    for last in options.last:
        average = _measure(folders[-last:], tasks, options, device)
        names = [folder.name for folder in folders[-last:]]
        lines.append(
            f"{run}, the newest checkpoint → the average of the last {last} ({names[0]} …)"
        )
        figures = {}
        for number, task in enumerate(tasks):
            changes = _compare(task, number, newest, average)
            lines.append(f"  {task.shards.folder} validation, {len(task.records):,} records")
            lines += [f"    {change.measure.label}: {change.describe()}" for change in changes]
            figures[str(task.shards.folder)] = {
                change.measure.key: {
                    "newest": change.before,
                    "average": change.after,
                    "change": change.change,
                }
                for change in changes
            }
        metrics["averages"][last] = {"steps": names, "sets": figures}
    result = EvalResult(lines, metrics, provenance, device=device)
    report_result(result, options.json_file)


def _load_tasks(run: Path, limit: int) -> list[DevTask]:
    """Return the dev records of each set of a run; of a fine-tuned one, not the text of replay."""
    shard_sets = load_run_shard_sets(run)
    shard_sets = [shards for shards in shard_sets if not shards.kind.is_text] or shard_sets
    tasks = []
    for shards in shard_sets:
        records = read_split_records(shards, "validation", limit)
        if records:
            question_set = find_evaluation(shards.kind).question_set(
                str(shards.folder), records, find_rouge_case(shards)
            )
            tasks.append(DevTask(shards, records, question_set))
    if not tasks:
        raise UserError(f"{run}: its data has no dev records, nothing to compare on")
    return tasks


def _measure(
    folders: Sequence[Path],
    tasks: Sequence[DevTask],
    options: AverageOptions,
    device: torch.device,
) -> Outcome:
    """Return what the average of the checkpoints in `folders`, one or more, does on the tasks."""
    model, tokenizer = average_checkpoints(folders, device)
    loaded = LoadedCheckpoint(folders[-1], model, tokenizer, {"checkpoint": str(folders[-1])})
    print(f"average of {len(folders)} checkpoints up to {folders[-1].name}", flush=True)
    losses = []
    answers: list[list[ModelAnswer | None]] = []
    for task in tasks:
        losses.append(find_evaluation(task.shards.kind).score_each(loaded, task.records))
        task_answers: list[ModelAnswer | None] = []
        if task.question_set is not None:
            task_answers += task.question_set.generate(
                loaded, task.question_set.questions, options.max_new_tokens, options.batch
            )
        answers.append(task_answers)
    return Outcome(losses, answers)


def _compare(task: DevTask, number: int, newest: Outcome, average: Outcome) -> list[Change]:
    """Return the changes in the task of this number, the loss first if any record is scored."""
    loss = compare_losses(NEW_TASK_LOSS, newest.losses[number], average.losses[number])
    changes = [loss] if loss is not None else []
    if task.question_set is not None:
        questions, answers = keep_answered(
            task.question_set, [newest.answers[number], average.answers[number]]
        )
        before, after = (questions.score(each) for each in answers)
        changes += [
            compare_scores(measure, before[measure.key], after[measure.key])
            for measure in questions.measures
        ]
    return changes
