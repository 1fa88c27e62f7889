"""The result of an evaluation command: a report on standard output, and files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment
from evaluate.predictions import MODEL_FIELDS, write_predictions

Row = dict[str, Any]


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation command."""

    lines: list[str]
    """The report on standard output."""
    metrics: dict[str, Any]
    """The contents of `--json`, after the provenance."""
    provenance: dict[str, Any]
    """The model, see `LoadedCheckpoint`, and how it was decoded; or the data of a baseline."""
    rows: list[Row] = field(default_factory=list)
    """The lines of `--predictions`."""
    device: Any = None
    """The torch.device of the model, if there is one."""


def drop_unanswered(rows: Sequence[Row | None], inputs: Sequence[str]) -> list[Row]:
    """Return the rows of answered questions, and print the number of the others.

    A question is not answered if its prompt leaves no room for an answer in the context. Raises
    UserError if no question is answered; `inputs` are the files that the message names.
    """
    answered = [row for row in rows if row is not None]
    num_dropped = len(rows) - len(answered)
    if num_dropped:
        print(f"left out, no room for an answer in the context: {num_dropped:,} questions")
    if not answered:
        raise UserError(f"--input {' '.join(inputs)}: no question of it fits the model's context")
    return answered


def report_result(
    result: EvalResult, json_file: Path | None, predictions_file: Path | None = None
) -> None:
    """Print the report, and write the files that are not None."""
    print("\n".join(result.lines))
    if predictions_file:
        model_fields = {
            key: value for key, value in result.provenance.items() if key in MODEL_FIELDS
        }
        write_predictions(predictions_file, result.rows, model_fields)
    if json_file:
        environment = collect_environment(result.device)
        write_json(json_file, {**result.provenance, **result.metrics, "made": environment})
