"""The command line of training: its options, its run directory, and the processes of torchrun.

Imports no PyTorch, so that `--help` and invalid options answer at once.
"""

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import Any, TypeVar

from common import run_layout
from common.errors import UserError
from common.options import parse_options
from data.derived_name import parse_derived_name
from data.mixture import parse_mixture
from model.checkpoint import locate
from train.options import TrainOptions

T = TypeVar("T", bound=TrainOptions)


def training_session() -> contextlib.AbstractContextManager[None]:
    """Return the context in which the processes that torchrun started train together.

    Without torchrun the context does nothing.
    """
    # WORLD_SIZE is torchrun's environment variable for the number of processes.
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    # Imported here because a single process need not load PyTorch before it parses its options.
    from train.distributed import distributed_session

    return distributed_session()


def parse_train_options(schema: type[T], command: str, description: str) -> T:
    """Parse the options of `python -m train.COMMAND`.

    On resume, the config.yaml in the run directory replaces the defaults. Raises UserError for
    invalid options, or if the run belongs to another command.
    """

    def find_recorded_options(values: dict[str, Any]) -> Path | None:
        """Return the config.yaml of the run that `values` name, or None for a new run."""
        run = values["run"]
        try:
            folder = Path(str(run)) if run else default_run_folder(command, str(values["data"]))
        except (ValueError, KeyError):
            # The validation reports the mixture, wrong or missing, with the other wrong values.
            return None
        config = folder / run_layout.CONFIG_FILE
        if not config.is_file():
            return None
        _check_command(folder, command)
        return config

    return parse_options(
        schema,
        sys.argv[1:],
        name=f"train.{command}",
        description=description,
        has_config_file=True,
        find_recorded_options=find_recorded_options,
    )


def _check_command(run: Path, command: str) -> None:
    """Raise UserError if the run belongs to another command."""
    if not (run / run_layout.RUN_FILE).is_file():
        return
    owner = locate.training_command(locate.read_fingerprints(run))
    if owner == command:
        return
    base_option = f"{shlex.quote(f'BASE={run}')} (--base {shlex.quote(str(run))})"
    if owner == "pretrain":
        purpose = "fine-tune" if command == "sft" else "train"
        raise UserError(f"{run} is a pretraining run; to {purpose} its model: {base_option}")
    owner_names = {"sft": "fine-tuning run", "dpo": "run on preferences", "grpo": "run on rewards"}
    purposes = {"pretrain": "text", "sft": "examples", "dpo": "preferences", "grpo": "rewards"}
    raise UserError(
        f"{run} is a {owner_names[owner]}; to resume it: make {owner} "
        f"{shlex.quote(f'RUN={run}')}; to train its weights on {purposes[command]}: {base_option} "
        "and another RUN"
    )


def default_run_folder(command: str, data: str) -> Path:
    """Return the directory of a run that the user did not name, such as runs/sft-csl+zhihu-0.5.

    It contains the weights of the mixture, so that other weights make another run. Raises
    ValueError as `parse_mixture` does.
    """
    parts = []
    for name, weight in zip(*parse_mixture(data), strict=True):
        suffix = f"-{weight:g}" if weight != 1 else ""
        derived = parse_derived_name(name)
        label = Path(derived.source if derived else name).resolve().name
        parts.append((derived.label(label) if derived else label) + suffix)
    return run_layout.RUNS_DIR / f"{command}-{'+'.join(parts)}"
