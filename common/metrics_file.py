"""Read the `metrics.jsonl` of a run.

Each line is a JSON object: `{"kind": "train", "step": 20, "loss": 7.16, …}`.
"""

import json
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run_layout import METRICS_FILE

# Kinds of records without scores on held-out data.
UNSCORED_KINDS = ("train", "sample", "evaluated", "skipped", "spike")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return all complete records of a run's `metrics.jsonl`, in order.

    Returns an empty list if the file does not exist. A last line that a kill cut short is ignored.
    Raises UserError, naming the line, if a line is not a record with `kind` and `step`.
    """
    path = run / METRICS_FILE
    # Split as bytes: a kill can cut a UTF-8 character in two, and str.splitlines also splits at
    # characters such as U+2028, which occur in samples.
    complete_lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [
        _parse_record(line, path, line_number)
        for line_number, line in enumerate(complete_lines, start=1)
    ]


def _parse_record(line: bytes, path: Path, line_number: int) -> dict[str, Any]:
    """Return a line of `path` as a record. Raises UserError if it has no `kind` and `step`."""
    try:
        record = json.loads(line)
        if isinstance(record["kind"], str) and isinstance(record["step"], int):
            return dict(record)
    except (ValueError, TypeError, KeyError):
        pass
    raise UserError(
        f"{path}, line {line_number}: not a record with kind and step; delete that line"
    )
