"""The tasks that a tuned run and its base are compared on: the data of both."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import UserError
from common.run_layout import find_run
from data.corpora.resolver import find_test_split
from data.records import Record
from data.shards import ShardSet, load_run_shard_sets
from evaluate.input_records import read_split_records, read_usable_records
from evaluate.kinds import find_evaluation
from evaluate.kinds.base import KindEvaluation
from evaluate.kinds.question_sets import QuestionSet
from evaluate.metrics.rouge_table import find_rouge_case


@dataclass(frozen=True)
class Task:
    """Records that neither model was trained on."""

    name: str
    """`old task` (of the base), `new task` (of the tuned run) or `old and new task`, with a number
    if there are several of a name."""
    label: str
    """The shard set, and the split that the records are from."""
    evaluation: KindEvaluation
    records: list[Record]
    question_set: QuestionSet | None
    """The questions about the records; None if they have none."""
    is_old: bool
    """Whether the base was trained on this task."""


def load_tasks(base: Path, run: Path, limit: int) -> list[Task]:
    """Return a task for each shard set that the base or the run was trained on.

    A task has the first `limit` records of the set's test split or, of text and of sets without a
    test split, of its dev split. Prints which sets are left out, and why. Raises UserError if none
    is left.
    """
    old_sets = {shards.fingerprint: shards for shards in _open_sets(base)}
    new_sets = {shards.fingerprint: shards for shards in _open_sets(run)}
    tasks = []
    for fingerprint, shards in (old_sets | new_sets).items():
        sets_by_age = {"old": old_sets, "new": new_sets}
        ages = [age for age, sets in sets_by_age.items() if fingerprint in sets]
        task = _read_task(f"{' and '.join(ages)} task", shards, limit, is_old="old" in ages)
        if task is None:
            print(f"{shards.folder} has no records to measure: left out", flush=True)
        else:
            tasks.append(task)
    if not tasks:
        raise UserError(
            f"neither {base} nor {run} has data to compare them on: give both a file with the "
            "single commands, such as python -m evaluate.repetition --source NAME --input FILE"
        )
    return _number_names(tasks)


def _number_names(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks, with a number in each name that several have."""
    totals = Counter(task.name for task in tasks)
    numbers: Counter[str] = Counter()
    numbered = []
    for task in tasks:
        numbers[task.name] += 1
        suffix = f" {numbers[task.name]}" if totals[task.name] > 1 else ""
        numbered.append(replace(task, name=f"{task.name}{suffix}"))
    return numbered


def _open_sets(checkpoint: Path) -> list[ShardSet]:
    """Return the shard sets that a run, or the run of a step, was trained on.

    Text beside other kinds is replay, which is left out. There are none, and a line that says so,
    if the checkpoint is no run, was imported, or if its data is gone.
    """
    run = find_run(checkpoint)
    shard_sets: list[ShardSet] = []
    problem = f"{checkpoint} has no data of its own"
    if run is not None:
        try:
            shard_sets = load_run_shard_sets(run, hint="its tasks are left out")
        except UserError as error:
            problem = str(error)
    if not shard_sets:
        print(problem, flush=True)
    return [shards for shards in shard_sets if not shards.kind.is_text] or shard_sets


def _read_task(name: str, shards: ShardSet, limit: int, *, is_old: bool) -> Task | None:
    """Return the task of one set, None if it has no records."""
    records, split = _read_records(shards, limit)
    if not records:
        return None
    evaluation = find_evaluation(shards.kind)
    label = f"{shards.folder} {split}"
    question_set = evaluation.question_set(label, records, find_rouge_case(shards))
    return Task(name, label, evaluation, records, question_set, is_old)


def _read_records(shards: ShardSet, limit: int) -> tuple[list[Record], str]:
    """Return the first records of the test or dev split, and the name of the split."""
    if not shards.kind.is_text:
        try:
            source, files = find_test_split(shards)
            return read_usable_records(source, list(map(str, files)), shards.kind, limit), "test"
        except UserError as error:
            print(f"{error}; its dev split is measured", flush=True)
    return read_split_records(shards, "validation", limit), "validation"
