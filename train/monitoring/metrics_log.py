"""The metrics of a run: `metrics.jsonl`, and its copies for TensorBoard and in `samples.md`.

The copies are written anew from `metrics.jsonl` whenever a run is opened, so that they have the
records that a killed process had not flushed.
"""

import json
import math
import shutil
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import fsync, name_path_in_errors, write_atomic
from common.metrics_file import read_metrics
from common.run_layout import METRICS_FILE, SAMPLES_FILE, TENSORBOARD_DIR


@dataclass(frozen=True)
class SelectionMetric:
    """The metric that selects the best checkpoint: field `key` of the records of one kind."""

    kind: str
    key: str
    higher_is_better: bool = False


# Kinds of records that training writes between evaluations.
TRAINING_KINDS = ("train", "skipped", "spike")
# Kinds that are not kept in memory, because training does not read them again.
WRITE_ONLY_KINDS = (*TRAINING_KINDS, "sample")
VALIDATION_LOSS = SelectionMetric("validation", "loss")


class MetricsLog:
    """Writes the metrics of a run, and finds its best evaluation.

    A record is a dict with a `kind`, a `step` and further fields, one line of `metrics.jsonl`.
    """

    def __init__(self, run: Path, step: int) -> None:
        """Open the log of a run that resumes after `step`, and drop the records of later steps."""
        # Imported here because other ranks write no log, and TensorBoard takes time to load.
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / METRICS_FILE
        # A killed process may have logged steps after its last checkpoint; they are trained again.
        records = [record for record in read_metrics(run) if record["step"] <= step]
        if not _has_record(records, "evaluated", step):
            # The evaluation of this step was interrupted, and will be repeated as a whole.
            records = [
                record
                for record in records
                if record["step"] < step or record["kind"] in TRAINING_KINDS
            ]
        self._evaluation_records: list[dict[str, Any]] = []
        for record in records:
            self._remember_evaluation(record)
        write_atomic(self._path, "".join(_format_json_line(record) for record in records))
        self._samples = run / SAMPLES_FILE
        write_atomic(self._samples, "# Samples\n")
        shutil.rmtree(run / TENSORBOARD_DIR, ignore_errors=True)
        # TensorBoard writes in a thread of its own, whose traceback would be printed.
        threading.excepthook = _ignore_disk_errors
        self._tensorboard = SummaryWriter(str(run / TENSORBOARD_DIR), flush_secs=20)
        for record in records:
            self._mirror_record(record)
        self._tensorboard.flush()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a record with the fields `values` to metrics.jsonl, and to the copies of it.

        docs/training.md lists the kinds; those of generated answers, such as rouge, are
        `KindEvaluation.answers_metric`. Raises OSError, with the path, if the file cannot be
        written.
        """
        record: dict[str, Any] = {"kind": kind, "step": step}
        for name, value in values.items():
            # JSON has no infinity and no NaN: they are written as strings.
            is_non_finite = isinstance(value, float) and not math.isfinite(value)
            record[name] = str(value) if is_non_finite else value
        self._remember_evaluation(record)
        with name_path_in_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_format_json_line(record))
        self._mirror_record(record)

    def _remember_evaluation(self, record: dict[str, Any]) -> None:
        """Keep a record in memory if `metric_history` or `has_record` may ask for it."""
        if record["kind"] not in WRITE_ONLY_KINDS:
            self._evaluation_records.append(record)

    def sync(self) -> None:
        """Force the records to the disk."""
        fsync(self._path)

    def _mirror_record(self, record: dict[str, Any]) -> None:
        """Copy a record to TensorBoard or, if it is a sample, to TensorBoard and samples.md."""
        kind, step = record["kind"], record["step"]
        if kind == "sample":
            tag = f"sample/{record['prompt'] or '<bos>'}"
            self._tensorboard.add_text(tag, record["text"], step)
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(_format_sample(record))
            return
        # Each set of a mixture gets a curve of its own.
        group = f"{kind} {record['set']}" if "set" in record else kind
        for name, value in record.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self._tensorboard.add_scalar(f"{group}/{name}", value, step)

    def has_record(self, kind: str, step: int) -> bool:
        """Return whether an evaluation wrote a record of this kind for the step."""
        return _has_record(self._evaluation_records, kind, step)

    def metric_history(self, metric: SelectionMetric) -> list[tuple[int, float]]:
        """Return (step, value) of the finite values of a metric in order, averaged over sets."""
        values_by_step: dict[int, list[float]] = {}
        for record in self._evaluation_records:
            value = record.get(metric.key)
            # A value that is not finite is a string in the log, and no candidate for the best.
            if record["kind"] == metric.kind and isinstance(value, float):
                values_by_step.setdefault(record["step"], []).append(value)
        return [(step, sum(values) / len(values)) for step, values in values_by_step.items()]

    def best_step(self, metric: SelectionMetric) -> int | None:
        """Return the first step with the best value, or None if the metric has no finite value."""
        history = self.metric_history(metric)
        if not history:
            return None
        # `min` finds the lowest value, so values of which higher is better change their sign.
        sign = -1 if metric.higher_is_better else 1
        best_step, _ = min(history, key=lambda item: (sign * item[1], item[0]))
        return best_step

    def close(self) -> None:
        """Flush TensorBoard."""
        self._tensorboard.close()


class InMemoryMetricsLog(MetricsLog):
    """The log of ranks other than 0: it keeps evaluations in memory and writes no files."""

    def __init__(self) -> None:
        # Without `super().__init__`, which opens the files.
        self._evaluation_records = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Remember a record of an evaluation; drop any other record."""
        self._remember_evaluation({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """Do nothing."""


def _has_record(records: list[dict[str, Any]], kind: str, step: int) -> bool:
    return any(record["kind"] == kind and record["step"] == step for record in records)


def _ignore_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """Print the exception of a thread, unless it is a disk error of TensorBoard's writer.

    The next call of the writer raises that error again, in the main thread.
    """
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _format_json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _format_sample(record: dict[str, Any]) -> str:
    """Return a sample as Markdown: a heading, and a quote with the prompt in bold."""
    lines = f"**{record['prompt']}**{record['text']}".splitlines()
    quoted = "\n".join(f"> {line}" for line in lines)
    return f"\n## step {record['step']}\n\n{quoted}\n"
