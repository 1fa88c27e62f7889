"""The written record of a run: `metrics.jsonl`, TensorBoard and `samples.md`, which a resumed run takes up exactly."""

import json
from pathlib import Path
from typing import Any

from common.files import write_atomic


class MetricsLog:
    """Writes each record three ways. Opened at a step, it drops what a killed process wrote after that step."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._path = run / "metrics.jsonl"
        self.records = [record for record in read_metrics(run) if record["step"] <= step]
        write_atomic(self._path, "".join(_line(record) for record in self.records))
        samples = [record for record in self.records if record["kind"] == "sample"]
        self._samples = run / "samples.md"
        write_atomic(self._samples, "# Samples\n" + "".join(_sample(record) for record in samples))
        # purge_step hides events of steps after it that an earlier process wrote.
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1, flush_secs=20)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a record. Kinds: train, validation, sample, skipped."""
        record = {"kind": kind, "step": step, **values}
        self.records.append(record)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        if kind == "sample":
            self._board.add_text(f"sample/{values['prompt'] or '<bos>'}", values["text"], step)
            with self._samples.open("a", encoding="utf-8") as file:
                file.write(_sample(record))
            return
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def has(self, kind: str, step: int) -> bool:
        """Whether there is such a record."""
        return any(record["kind"] == kind and record["step"] == step for record in self.records)

    def best(self) -> int | None:
        """The step of the lowest validation loss so far."""
        scored = [(record["loss"], record["step"]) for record in self.records if record["kind"] == "validation"]
        return min(scored)[1] if scored else None

    def close(self) -> None:
        """Flush TensorBoard."""
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run's `metrics.jsonl`; a last line cut short by a kill is left out."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _sample(record: dict[str, Any]) -> str:
    quoted = "\n".join("> " + line for line in f"**{record['prompt']}**{record['text']}".splitlines())
    return f"\n## step {record['step']}\n\n{quoted}\n"
