"""Load the checkpoint that an evaluation command measures."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from evaluate.options import DeviceOptions
from model.chat_template.template import Template, load_template
from model.checkpoint import locate, weights
from model.llama import Llama
from model.precision import DTYPES
from model.quantize import quantize_int8
from model.tokenizer.base import Tokenizer


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint that is resolved and loaded.

    It is resolved only once, because a run in progress may write newer steps meanwhile.
    """

    folder: Path
    model: Llama
    tokenizer: Tokenizer
    provenance: dict[str, str | int]
    """The keys are `checkpoint` (as the user named it), `step` if known, `weights` if quantized,
    and `kv_cache` if it was asked for."""

    @cached_property
    def identity(self) -> dict[str, str | int]:
        """Return what the outputs of the model depend on, for results that are kept on disk."""
        template = hashlib.sha256(repr(self.template).encode()).hexdigest()
        return {
            **self.provenance,
            "sha256": locate.weights_sha256(self.folder),
            "tokenizer": self.tokenizer.fingerprint,
            "template": template,
        }

    @cached_property
    def template(self) -> Template:
        """Return the chat template of the checkpoint."""
        return load_template(self.folder)


def load_checkpoint(
    checkpoint: Path, options: DeviceOptions, device: torch.device
) -> LoadedCheckpoint:
    """Load the newest step of a run, one of its steps, or an exported folder.

    The options say in which number formats. Raises UserError if `checkpoint` is not one of these.
    """
    folder = locate.resolve_checkpoint(checkpoint)
    model, tokenizer = weights.load_checkpoint(folder, device)
    provenance: dict[str, str | int] = {"checkpoint": str(checkpoint)}
    step = locate.read_step(folder)
    if step is not None:
        provenance["step"] = step
    if options.quantize:
        model = quantize_int8(model)
        provenance["weights"] = options.quantize
    if options.kv_cache:
        model.kv_cache_dtype = DTYPES[options.kv_cache]
        provenance["kv_cache"] = options.kv_cache
    return LoadedCheckpoint(folder, model, tokenizer, provenance)
