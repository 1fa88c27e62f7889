"""The command line of training, without PyTorch: options, the run that they name, the processes."""

import contextlib
import math
import os
import sys
from pathlib import Path
from typing import Any, TypeVar

from common import run_layout
from common.errors import UserError
from common.options import parse_options
from model.checkpoint import locate
from train.options import TrainOptions

T = TypeVar("T", bound=TrainOptions)


def training_session() -> contextlib.AbstractContextManager[None]:
    """Return the session of the processes that torchrun started; without torchrun, an empty one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    from train.distributed import distributed_session

    return distributed_session()


def parse_train_options(schema: type[T], command: str, description: str) -> T:
    """Return the options of `python -m train.COMMAND`, on resume with those of the run."""

    def find_recorded_options(values: dict[str, Any]) -> Path | None:
        run = values["run"]
        folder = Path(str(run)) if run else default_run_folder(command, str(values["data"]))
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
    """Raise UserError if the run belongs to the other command, which has other options."""
    if not (run / run_layout.RUN_FILE).is_file():
        return
    owner = locate.training_command(locate.read_fingerprints(run))
    if command == "sft" and owner == "pretrain":
        raise UserError(
            f"{run} is a pretraining run; to fine-tune its model: BASE={run} (--base {run})"
        )
    if command == "pretrain" and owner == "sft":
        raise UserError(
            f"{run} is a fine-tuning run; to resume it: make sft RUN={run}; to train its weights "
            f"on text: BASE={run} (--base {run}) and another RUN"
        )


def default_run_folder(command: str, data: str) -> Path:
    """Return the directory of a run without a name: other weights of a mixture are another run."""
    parts = []
    for name, weight in zip(*parse_mixture(data), strict=True):
        suffix = f"-{weight:g}" if weight != 1 else ""
        parts.append(Path(name).resolve().name + suffix)
    return run_layout.RUNS_DIR / f"{command}-{'+'.join(parts)}"


def parse_mixture(text: str) -> tuple[list[str], tuple[float, ...]]:
    """Return the names and weights of `wikipedia:0.5+zhihu`; the weight defaults to 1.

    Raises UserError for a weight that is not above 0.
    """
    names = []
    weights = []
    # A path with a plus or a colon in it is not a mixture.
    for part in [text] if Path(text).exists() else text.split("+"):
        name, colon, weight_text = part.rpartition(":")
        weight = 1.0
        if colon and name:
            try:
                weight = float(weight_text)
            except ValueError:
                name = part
        else:
            name = part
        if not (math.isfinite(weight) and weight > 0):
            raise UserError(f"--data {text}: the weight of {name} must be above 0")
        names.append(name)
        weights.append(weight)
    return names, tuple(weights)
