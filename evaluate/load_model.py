"""Load the checkpoint that an evaluation command measures."""

from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint import locate, weights
from model.llama import Llama
from model.quantize import quantize_int8
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The checkpoint folder that `--checkpoint` resolved to, and its contents.

    A run that is being trained has a newer step by the time its figures are written, so the folder
    is resolved once. `provenance` goes into the figures of `--json`: `checkpoint`, the `step` in its
    run, and `weights` if they are quantized.
    """

    folder: Path
    model: Llama
    tokenizer: Tokenizer
    provenance: dict[str, str | int]


def load_checkpoint(
    checkpoint: Path, quantize: str | None, device: torch.device
) -> LoadedCheckpoint:
    """Return the model, quantized if `quantize` is set, and the tokenizer of a checkpoint."""
    folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(folder, device)
    provenance: dict[str, str | int] = {"checkpoint": str(checkpoint)}
    step = locate.read_step(folder)
    if step is not None:
        provenance["step"] = step
    if quantize:
        model = quantize_int8(model)
        provenance["weights"] = quantize
    return LoadedCheckpoint(folder, model, tokenizer, provenance)
