"""The result of an evaluation command: lines on standard output, and files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment
from evaluate.partial_results import partial_path
from evaluate.predictions import MODEL_FIELDS, write_predictions

Row = dict[str, Any]


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation command."""

    lines: list[str]
    """The lines on standard output."""
    metrics: dict[str, Any]
    """The contents of the file `--json`, after the provenance."""
    provenance: dict[str, Any]
    """The model, see `LoadedCheckpoint`, and its decoding options; or the data of a baseline."""
    rows: list[Row] = field(default_factory=list)
    """The lines of the file `--predictions`."""
    device: Any = None
    """The torch.device of the model; None without a model."""


def drop_unanswered(rows: Sequence[Row | None], inputs: Sequence[str], context: int) -> list[Row]:
    """Return the rows of answered questions, and print how many questions were left out.

    A row is None if the prompt of its question leaves no room for an answer in the context. Raises
    UserError if no question is answered; `inputs` are the files that the message names, and
    `context` is the length in tokens that the model was trained on.
    """
    answered = [row for row in rows if row is not None]
    num_dropped = len(rows) - len(answered)
    if num_dropped:
        print(f"left out, no room for an answer in the context: {num_dropped:,} questions")
    if not answered:
        raise UserError(
            f"--input {' '.join(inputs)}: no question fits the model's context of {context} tokens "
            "with room for an answer: give shorter passages, a lower --max_new_tokens, or a model "
            "that was trained on longer rows"
        )
    return answered


def report_result(
    result: EvalResult, json_file: Path | None, predictions_file: Path | None = None
) -> None:
    """Print the lines of the result, and write the files that are not None.

    Then the partial results of an interrupted call are deleted, if there are any. Each line of
    `predictions_file` also names the model.
    """
    print("\n".join(result.lines))
    if predictions_file:
        model_fields = {
            key: value for key, value in result.provenance.items() if key in MODEL_FIELDS
        }
        write_predictions(predictions_file, result.rows, model_fields)
    if json_file:
        # Results files have the environment under the key "made".
        environment = collect_environment(result.device)
        write_json(json_file, {**result.provenance, **result.metrics, "made": environment})
    if output := json_file or predictions_file:
        partial_path(output).unlink(missing_ok=True)
