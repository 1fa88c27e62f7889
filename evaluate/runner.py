"""The common parts of the evaluation commands: load a checkpoint, print and write the result."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.files import write_json
from common.machine import collect_environment
from evaluate.predictions import MODEL_FIELDS, write_predictions

if TYPE_CHECKING:
    import torch

    from model.chat_template.template import Template
    from model.llama import Llama
    from model.tokenizer.base import Tokenizer

Row = dict[str, Any]


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A resolved checkpoint. Resolved once: a run in progress may write newer steps meanwhile."""

    folder: Path
    model: "Llama"
    tokenizer: "Tokenizer"
    provenance: dict[str, str | int]
    """`checkpoint` as the user named it, the `step` within its run, `weights` if quantized."""

    @cached_property
    def template(self) -> "Template":
        """Return the chat template of the checkpoint."""
        from model.chat_template.template import Template

        return Template.load(self.folder)


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation command."""

    lines: list[str]
    """The report on standard output."""
    metrics: dict[str, Any]
    """The contents of `--json`, after the provenance."""
    provenance: dict[str, Any]
    """The evaluated model, see `LoadedCheckpoint`, and how it was decoded."""
    rows: list[Row] = field(default_factory=list)
    """The lines of `--predictions`."""
    device: "torch.device | None" = None


def load_checkpoint(
    checkpoint: Path, device: "torch.device", *, quantize: str | None = None
) -> LoadedCheckpoint:
    """Load the newest step of a run, one of its steps, or an exported folder.

    Raises UserError if `checkpoint` is not one of these.
    """
    from model.checkpoint import locate, weights
    from model.quantize import quantize_int8

    folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(folder, device)
    provenance: dict[str, str | int] = {"checkpoint": str(checkpoint)}
    step = locate.read_step(folder)
    if step is not None:
        provenance["step"] = step
    if quantize:
        provenance["weights"] = quantize
        model = quantize_int8(model)
    return LoadedCheckpoint(folder, model, tokenizer, provenance)


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


def report_result(options: argparse.Namespace, result: EvalResult) -> None:
    """Print the report, and write the files of `--predictions` and `--json`."""
    print("\n".join(result.lines))
    if options.predictions:
        model_fields = {
            key: value for key, value in result.provenance.items() if key in MODEL_FIELDS
        }
        write_predictions(options.predictions, result.rows, model_fields)
    if options.json:
        environment = collect_environment(result.device)
        write_json(options.json, {**result.provenance, **result.metrics, "made": environment})
