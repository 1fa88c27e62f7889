"""A run's `metrics.jsonl`: one JSON object a line, `{"kind": "train", "step": 20, "loss": 7.16, …}`."""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run_layout import METRICS_FILE

# Kinds of records that hold no scores of the model on held-out data.
UNSCORED_KINDS = ("train", "sample", "evaluated", "skipped", "spike")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All whole records of a run's `metrics.jsonl`, in order; a last line cut short by a kill is left out.

    No file is no records. UserError names the line that is not a record with `kind` and `step`.
    """
    path = run / METRICS_FILE
    # Split as bytes: a kill can cut a character in two, and str.splitlines also cuts at characters that samples hold.
    complete_lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [_parse_record(line, path, number) for number, line in enumerate(complete_lines, 1)]


def _parse_record(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if isinstance(record["kind"], str) and isinstance(record["step"], int):
            return dict(record)
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(f"{path}, line {number}: not a record with kind and step; delete that line")
