"""Write a run that was not trained here: its record, and one checkpoint without optimizer state."""

import shutil
from pathlib import Path
from typing import Any

from common import run_layout
from common.files import atomic_folder, write_checksummed_json
from model.chat_template.template import Template
from model.checkpoint import weights
from model.llama import Llama
from model.tokenizer.base import Tokenizer

# The format in the manifest of a checkpoint of a run.
CHECKPOINT_FORMAT = "babyllama-checkpoint-1"


def write_single_checkpoint_run(
    run: Path,
    run_info: dict[str, Any],
    step: int,
    model: Llama,
    tokenizer: Tokenizer,
    template: Template | None,
    *,
    config_of: Path | None = None,
) -> None:
    """Write the run directory `run` with the record `run_info` and the checkpoint of `step`.

    Without a `template`, the default one is used. The options of the run `config_of`, if it has
    any, are copied.
    """
    with atomic_folder(run) as run_folder:
        manifest = {"format": CHECKPOINT_FORMAT, "step": step, "steps": step}
        with atomic_folder(run_layout.step_folder(run_folder, step), manifest) as folder:
            weights.save_checkpoint(model, tokenizer, folder)
            if template is not None:
                template.save(folder)
        if config_of is not None and (config_of / run_layout.CONFIG_FILE).is_file():
            shutil.copyfile(config_of / run_layout.CONFIG_FILE, run_folder / run_layout.CONFIG_FILE)
        write_checksummed_json(run_folder / run_layout.RUN_FILE, run_info)
