"""The written record of a run: `metrics.jsonl`, TensorBoard and `samples.md`, which a resumed run takes up exactly.

`metrics.jsonl` is the record; the other two are written anew from it whenever a run is opened, so that what a killed
process had not yet flushed is in them all the same.
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
    """By what a checkpoint is the best: a field of a kind of record."""

    kind: str
    key: str
    higher_is_better: bool = False


# Kinds of records that training writes between evaluations.
TRAINING_KINDS = ("train", "skipped", "spike")
# Kinds that training never asks for again: they are written and not kept in memory.
WRITE_ONLY_KINDS = (*TRAINING_KINDS, "sample")
VALIDATION_LOSS = SelectionMetric("validation", "loss")


class MetricsLog:
    """Writes each record three ways. Opened at a step, it drops what a killed process wrote after that step,
    and an evaluation of that step that was not finished.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / METRICS_FILE
        records = [record for record in read_metrics(run) if record["step"] <= step]
        if not any(record["kind"] == "evaluated" and record["step"] == step for record in records):
            # An evaluation of this step that was cut short is made again, whole.
            records = [
                record
                for record in records
                if record["step"] < step or record["kind"] in TRAINING_KINDS
            ]
        self._evaluation_records = [
            record for record in records if record["kind"] not in WRITE_ONLY_KINDS
        ]
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
        """Append a record. Kinds: train, validation, final, rouge, answers, sample, evaluated, skipped, spike."""
        # JSON has no infinity and no NaN.
        safe = {
            k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in values.items()
        }
        record = {"kind": kind, "step": step, **safe}
        self._remember_evaluation(record)
        with name_path_in_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_format_json_line(record))
        self._mirror_record(record)

    def _remember_evaluation(self, record: dict[str, Any]) -> None:
        """Hold on to what `has`, `scores` and `best` look through: in a long run training's own lines are millions."""
        if record["kind"] not in WRITE_ONLY_KINDS:
            self._evaluation_records.append(record)

    def sync(self) -> None:
        """Have what was written on the disk, whatever happens to the machine."""
        fsync(self._path)

    def _mirror_record(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        if kind == "sample":
            self._tensorboard.add_text(
                f"sample/{record['prompt'] or '<bos>'}", record["text"], step
            )
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(_format_sample(record))
            return
        # Two sets scored at one step are two curves.
        group = f"{kind} {record['set']}" if "set" in record else kind
        for name, value in record.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self._tensorboard.add_scalar(f"{group}/{name}", value, step)

    def has_record(self, kind: str, step: int) -> bool:
        """Whether there is such a record of an evaluation."""
        return any(
            record["kind"] == kind and record["step"] == step for record in self._evaluation_records
        )

    def metric_history(self, metric: SelectionMetric) -> list[tuple[int, float]]:
        """Step and value of every finite measurement so far, oldest first; of a mix, the mean over its sets."""
        found: dict[int, list[float]] = {}
        for record in self._evaluation_records:
            if record["kind"] == metric.kind and isinstance(value := record.get(metric.key), float):
                found.setdefault(record["step"], []).append(value)
        return [(step, sum(values) / len(values)) for step, values in found.items()]

    def best_step(self, metric: SelectionMetric) -> int | None:
        """The step that measured best so far, the first of equals."""
        scores = [
            (-value if metric.higher_is_better else value, step)
            for step, value in self.metric_history(metric)
        ]
        return min(scores)[1] if scores else None

    def close(self) -> None:
        """Flush TensorBoard."""
        self._tensorboard.close()


def _ignore_disk_errors(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread prints a traceback when the disk is full, and then its next call raises the same error."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class InMemoryMetricsLog(MetricsLog):
    """What the other processes of a run have for a log: it knows what evaluations told it, and writes nothing."""

    def __init__(self) -> None:
        self._evaluation_records = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `MetricsLog`."""
        self._remember_evaluation({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """There is nothing to flush."""


def _format_json_line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _format_sample(record: dict[str, Any]) -> str:
    quoted = "\n".join(
        "> " + line for line in f"**{record['prompt']}**{record['text']}".splitlines()
    )
    return f"\n## step {record['step']}\n\n{quoted}\n"
