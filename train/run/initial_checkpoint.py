"""Resolve the checkpoint that a run starts from: its base, or on resume its own newest step.

A run stores the sha256 of its base's weights. On resume the base is hashed again if it still
exists, so that another base, or new weights in the same folder, show as a difference. If the base
is gone, the run is resumed without it, because it has checkpoints of its own.
"""

from dataclasses import dataclass
from pathlib import Path

from common import run_layout
from common.errors import UserError
from common.run_layout import CONFIG_FILE
from common.yaml_files import load_yaml
from model.checkpoint import locate

# The fingerprint of a run without a base, which starts from random weights.
NO_BASE = "none"


@dataclass(frozen=True)
class InitialCheckpoint:
    """The weights and the tokenizer that a run starts from."""

    folder: Path | None  # the checkpoint of the base; None: random weights
    fingerprint: str  # sha256 of the base's weights, or NO_BASE
    tokenizer_path: Path | None  # None: the command's default
    resume_folder: Path | None = None  # on resume the run's own newest checkpoint

    @property
    def config_folder(self) -> Path | None:
        """The folder with the config.json and chat template of the model.

        On resume it is the run's own checkpoint, because the base may be gone. None if a new run
        starts from random weights.
        """
        return self.resume_folder or self.folder


def resolve_initial_checkpoint(
    base: Path | None, tokenizer: Path | None, run: Path
) -> InitialCheckpoint:
    """Resolve the options `base` and `tokenizer` for the run directory `run`.

    A base of None stands for random weights. Raises UserError if the base cannot be used, or if a
    new run has both a tokenizer and a base.
    """
    is_run = (run / run_layout.RUN_FILE).is_file()
    newest_step = locate.find_newest_step(run) if is_run else None
    if newest_step is not None:
        return _resolve_on_resume(base, tokenizer, run, run_layout.step_folder(run, newest_step))
    if base is None:
        return InitialCheckpoint(folder=None, fingerprint=NO_BASE, tokenizer_path=tokenizer)
    # The last folder of the chain is the checkpoint that `base` resolves to. If that is an adapter,
    # the call also checks that the models below it exist.
    chain = locate.adapter_chain(base)
    folder = chain[-1]
    # Here, because the data would be prepared before the weights are loaded.
    locate.check_is_imported(chain[0])
    if tokenizer is not None:
        raise UserError(f"--tokenizer is for a run without a base: {base} has its own")
    _print_if_unfinished(base, folder)
    return InitialCheckpoint(folder, locate.weights_sha256(folder), tokenizer_path=folder)


def _resolve_on_resume(
    base: Path | None, tokenizer: Path | None, run: Path, newest: Path
) -> InitialCheckpoint:
    """Resolve the options for a run with the checkpoint `newest`.

    A base or tokenizer that config.yaml records may be gone. Raises UserError if another base
    cannot be used.
    """
    config_file = run / CONFIG_FILE
    recorded = load_yaml(config_file, error_prefix="") if config_file.is_file() else {}
    is_recorded_tokenizer = str(tokenizer) == recorded.get("tokenizer")
    if tokenizer is None or (is_recorded_tokenizer and not tokenizer.exists()):
        tokenizer = newest
    if base is None:
        return InitialCheckpoint(
            folder=None, fingerprint=NO_BASE, tokenizer_path=tokenizer, resume_folder=newest
        )
    try:
        folder = locate.resolve_checkpoint(base)
        fingerprint = locate.weights_sha256(folder)
    except UserError as error:
        # config.yaml records the resolved checkpoint, and --base may name the run that it is in.
        recorded_base = Path(str(recorded.get("base")))
        if not recorded_base.is_relative_to(base):
            raise
        reason = error if base.exists() else f"{base} is gone"
        print(f"base      {run} is resumed without comparing its base: {reason}", flush=True)
        folder = recorded_base
        fingerprint = locate.read_fingerprints(run).get("base", NO_BASE)
    return InitialCheckpoint(folder, fingerprint, tokenizer, newest)


def _print_if_unfinished(base: Path, folder: Path) -> None:
    """Print a line if the base is a run that has not trained all its steps.

    `folder` is the checkpoint that the base resolves to.
    """
    remaining = locate.find_remaining_steps(base, folder)
    if remaining is not None:
        print(
            f"base      {base} is unfinished, at step {remaining.step:,} of "
            f"{remaining.total_steps:,}; to complete it first: {remaining.resume_command}",
            flush=True,
        )
