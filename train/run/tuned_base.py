"""The base of learning from preferences or rewards: a fine-tuned model, which answers questions."""

from dataclasses import dataclass
from pathlib import Path

from model.chat_template.template import TEMPLATE_FILE, Template, load_template
from model.config import LlamaConfig
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from train.options import ModelOptions
from train.run.default_base import resolve_newest_base
from train.run.initial_checkpoint import InitialCheckpoint, resolve_initial_checkpoint
from train.run.model_config import resolve_model_config


@dataclass(frozen=True)
class TunedBase:
    """A fine-tuned checkpoint with what a run takes over from it."""

    checkpoint: InitialCheckpoint
    folder: Path
    tokenizer_path: Path
    tokenizer: Tokenizer
    template: Template
    model_config: LlamaConfig


def resolve_tuned_base(option: Path | None, run: Path, sequence_length: int) -> TunedBase:
    """Return the base that --base names, by default the newest run of `train.sft`.

    `run` is the run directory: a run that is resumed goes on from its own checkpoint. Prints a
    warning about a base without a chat template, which fine-tuning writes. Raises UserError if
    there is no base, or if its context is shorter than `sequence_length`.
    """
    path = option or resolve_newest_base(
        "sft", advice="make sft first, or name a model that answers questions with --base"
    )
    checkpoint = resolve_initial_checkpoint(path, None, run)
    folder, tokenizer_path = checkpoint.folder, checkpoint.tokenizer_path
    assert folder is not None and tokenizer_path is not None
    # That of a run that is resumed: its base may be gone.
    if not (tokenizer_path / TEMPLATE_FILE).is_file():
        print(
            f"warning: {folder} was not fine-tuned, and does not answer questions yet: make sft "
            "first",
            flush=True,
        )
    tokenizer = load_tokenizer(tokenizer_path)
    model_config = resolve_model_config(ModelOptions(), checkpoint, tokenizer, sequence_length)
    return TunedBase(
        checkpoint, folder, tokenizer_path, tokenizer, load_template(tokenizer_path), model_config
    )
