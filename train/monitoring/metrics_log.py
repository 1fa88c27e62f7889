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
from common.run_layout import METRICS_FILE


@dataclass(frozen=True)
class SelectionMetric:
    """The metric that selects the best checkpoint: a kind of records, and a field of them."""

    kind: str
    key: str
    higher_is_better: bool = False


# Kinds of records that training writes between evaluations.
TRAINING_KINDS = ("train", "skipped", "spike")
# Kinds that are not kept in memory, because training does not read them again.
WRITE_ONLY_KINDS = (*TRAINING_KINDS, "sample")
VALIDATION_LOSS = SelectionMetric("validation", "loss")


class MetricsLog:
    """Writes records to the file and its copies, and answers questions about evaluations."""

    def __init__(self, run: Path, step: int) -> None:
        """Open the log of a run that resumes after `step`, and drop the records of later steps."""
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / METRICS_FILE
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
        self._samples = run / "samples.md"
        write_atomic(self._samples, "# Samples\n")
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        threading.excepthook = _ignore_disk_errors
        self._tensorboard = SummaryWriter(str(run / "tensorboard"), flush_secs=20)
        for record in records:
            self._mirror_record(record)
        self._tensorboard.flush()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a record.

        Kinds: train, skipped, spike; validation, final, sample, evaluated; rouge, answers and the
        other names of generated answers (`evaluate.kinds`).
        """
        record: dict[str, Any] = {"kind": kind, "step": step}
        for name, value in values.items():
            # JSON has no infinity and no NaN.
            is_json = not isinstance(value, float) or math.isfinite(value)
            record[name] = value if is_json else str(value)
        self._remember_evaluation(record)
        with name_path_in_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_format_json_line(record))
        self._mirror_record(record)

    def _remember_evaluation(self, record: dict[str, Any]) -> None:
        if record["kind"] not in WRITE_ONLY_KINDS:
            self._evaluation_records.append(record)

    def sync(self) -> None:
        """Force the records to the disk."""
        fsync(self._path)

    def _mirror_record(self, record: dict[str, Any]) -> None:
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
        """Return whether there is a record of this kind, one of an evaluation, for the step."""
        return _has_record(self._evaluation_records, kind, step)

    def metric_history(self, metric: SelectionMetric) -> list[tuple[int, float]]:
        """Return (step, value) of the finite measurements in order, averaged over sets."""
        values_by_step: dict[int, list[float]] = {}
        for record in self._evaluation_records:
            value = record.get(metric.key)
            if record["kind"] == metric.kind and isinstance(value, float):
                values_by_step.setdefault(record["step"], []).append(value)
        return [(step, sum(values) / len(values)) for step, values in values_by_step.items()]

    def best_step(self, metric: SelectionMetric) -> int | None:
        """Return the step with the best value, the first of equals; None without a measurement."""
        history = self.metric_history(metric)
        if not history:
            return None
        sign = -1 if metric.higher_is_better else 1
        best_step, _ = min(history, key=lambda item: (sign * item[1], item[0]))
        return best_step

    def close(self) -> None:
        """Flush TensorBoard."""
        self._tensorboard.close()


class InMemoryMetricsLog(MetricsLog):
    """The log of ranks above 0: it keeps evaluations in memory and writes nothing."""

    def __init__(self) -> None:
        self._evaluation_records = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `MetricsLog`."""
        self._remember_evaluation({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """Do nothing."""


def _has_record(records: list[dict[str, Any]], kind: str, step: int) -> bool:
    return any(record["kind"] == kind and record["step"] == step for record in records)


def _ignore_disk_errors(arguments: threading.ExceptHookArgs) -> None:
    """Silence TensorBoard's thread for a full disk, whose error the next call raises."""
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)


def _format_json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _format_sample(record: dict[str, Any]) -> str:
    lines = f"**{record['prompt']}**{record['text']}".splitlines()
    quoted = "\n".join(f"> {line}" for line in lines)
    return f"\n## step {record['step']}\n\n{quoted}\n"
