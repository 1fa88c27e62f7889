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

from common.files import fsync, naming, write_atomic
from common.metrics_file import FILE, read_metrics


@dataclass(frozen=True)
class Measure:
    """By what a checkpoint is the best: a field of a kind of record."""

    kind: str
    key: str
    higher: bool = False


# Kinds of records that training writes between evaluations.
BETWEEN = ("train", "skipped", "spike")
# Kinds that training never asks for again: they are written and not kept in memory.
UNASKED = (*BETWEEN, "sample")
VALIDATION_LOSS = Measure("validation", "loss")


class MetricsLog:
    """Writes each record three ways. Opened at a step, it drops what a killed process wrote after that step,
    and an evaluation of that step that was not finished.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / FILE
        records = [record for record in read_metrics(run) if record["step"] <= step]
        if not any(record["kind"] == "evaluated" and record["step"] == step for record in records):
            # An evaluation of this step that was cut short is made again, whole.
            records = [record for record in records if record["step"] < step or record["kind"] in BETWEEN]
        self._kept = [record for record in records if record["kind"] not in UNASKED]
        write_atomic(self._path, "".join(_line(record) for record in records))
        self._samples = run / "samples.md"
        write_atomic(self._samples, "# Samples\n")
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        threading.excepthook = _quiet_about_disks
        self._board = SummaryWriter(str(run / "tensorboard"), flush_secs=20)
        for record in records:
            self._show(record)
        self._board.flush()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a record. Kinds: train, validation, final, rouge, answers, sample, evaluated, skipped, spike."""
        # JSON has no infinity and no NaN.
        safe = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        record = {"kind": kind, "step": step, **safe}
        self._keep(record)
        with naming(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        self._show(record)

    def _keep(self, record: dict[str, Any]) -> None:
        """Hold on to what `has`, `scores` and `best` look through: in a long run training's own lines are millions."""
        if record["kind"] not in UNASKED:
            self._kept.append(record)

    def sync(self) -> None:
        """Have what was written on the disk, whatever happens to the machine."""
        fsync(self._path)

    def _show(self, record: dict[str, Any]) -> None:
        kind, step = record["kind"], record["step"]
        if kind == "sample":
            self._board.add_text(f"sample/{record['prompt'] or '<bos>'}", record["text"], step)
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(_sample(record))
            return
        # Two sets scored at one step are two curves.
        group = f"{kind} {record['set']}" if "set" in record else kind
        for name, value in record.items():
            if name not in ("kind", "step") and isinstance(value, int | float):
                self._board.add_scalar(f"{group}/{name}", value, step)

    def has(self, kind: str, step: int) -> bool:
        """Whether there is such a record of an evaluation."""
        return any(record["kind"] == kind and record["step"] == step for record in self._kept)

    def scores(self, measure: Measure) -> list[tuple[int, float]]:
        """Step and value of every finite measurement so far, oldest first; of a mix, the mean over its sets."""
        found: dict[int, list[float]] = {}
        for record in self._kept:
            if record["kind"] == measure.kind and isinstance(value := record.get(measure.key), float):
                found.setdefault(record["step"], []).append(value)
        return [(step, sum(values) / len(values)) for step, values in found.items()]

    def best(self, measure: Measure) -> int | None:
        """The step that measured best so far, the first of equals."""
        scores = [(-value if measure.higher else value, step) for step, value in self.scores(measure)]
        return min(scores)[1] if scores else None

    def close(self) -> None:
        """Flush TensorBoard."""
        self._board.close()


def _quiet_about_disks(failure: threading.ExceptHookArgs) -> None:
    """TensorBoard's thread prints a traceback when the disk is full, and then its next call raises the same error."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


class UnwrittenLog(MetricsLog):
    """What the other processes of a run have for a log: it knows what evaluations told it, and writes nothing."""

    def __init__(self) -> None:
        self._kept = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """See `MetricsLog`."""
        self._keep({"kind": kind, "step": step, **values})

    def close(self) -> None:
        """There is nothing to flush."""


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _sample(record: dict[str, Any]) -> str:
    quoted = "\n".join("> " + line for line in f"**{record['prompt']}**{record['text']}".splitlines())
    return f"\n## step {record['step']}\n\n{quoted}\n"
