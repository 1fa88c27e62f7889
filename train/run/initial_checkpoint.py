"""Resolve the checkpoint that a run starts from: its base, and on resume its own newest step.

A run stores the sha256 of its base's weights. On resume the base is hashed again where it still
exists, so that a base that was trained on since, or another base, shows as a difference. A base
that is gone is no obstacle: the run has checkpoints of its own.
"""

from dataclasses import dataclass
from pathlib import Path

from common import run_layout
from common.errors import UserError
from common.options import load_yaml
from common.run_layout import CONFIG_FILE
from model.checkpoint import locate

# The fingerprint of a base that does not exist: the weights are random.
NO_BASE = "none"


@dataclass(frozen=True)
class InitialCheckpoint:
    """The weights and the tokenizer that a run starts from."""

    folder: Path | None  # of the base; None: random weights
    fingerprint: str  # sha256 of the base's weights, or NO_BASE
    tokenizer_path: Path | None  # None: the command's default
    resumed: Path | None = None  # the run's own newest checkpoint

    @property
    def source(self) -> Path | None:
        """The folder with config.json and template: on resume of the run itself."""
        return self.resumed or self.folder


def resolve_initial_checkpoint(
    base: Path | None, tokenizer: Path | None, run: Path
) -> InitialCheckpoint:
    """Resolve the options `base` and `tokenizer` for the run directory `run`; base None is no base.

    Raises UserError if the base cannot be used, or if a new run names a tokenizer beside a base.
    """
    if (run / run_layout.RUN_FILE).is_file() and (step := locate.find_newest_step(run)) is not None:
        return _resolve_on_resume(base, tokenizer, run, run_layout.step_folder(run, step))
    if base is None:
        return InitialCheckpoint(None, NO_BASE, tokenizer)
    # The last folder of the chain: a base that is an adapter needs its own base too.
    folder = locate.adapter_chain(base)[-1]
    if tokenizer is not None:
        raise UserError(f"--tokenizer is for a run without a base: {base} has its own")
    _print_if_unfinished(base, folder)
    return InitialCheckpoint(folder, locate.weights_sha256(folder), folder)


def _resolve_on_resume(
    base: Path | None, tokenizer: Path | None, run: Path, newest: Path
) -> InitialCheckpoint:
    """Resolve the options again; paths that the run recorded may be gone, others may not."""
    config = run / CONFIG_FILE
    recorded = load_yaml(config, "") if config.is_file() else {}
    is_recorded = str(tokenizer) == recorded.get("tokenizer")
    if tokenizer is None or (is_recorded and not tokenizer.exists()):
        tokenizer = newest
    if base is None:
        return InitialCheckpoint(None, NO_BASE, tokenizer, newest)
    try:
        folder = locate.resolve_checkpoint(base)
        fingerprint = locate.weights_sha256(folder)
    except UserError as error:
        # The options may name a run, of which the step that it resolved to is recorded.
        recorded_base = Path(str(recorded.get("base")))
        if not recorded_base.is_relative_to(base):
            raise
        reason = error if base.exists() else f"{base} is gone"
        print(f"base      {run} is resumed without comparing its base: {reason}", flush=True)
        folder = recorded_base
        fingerprint = locate.read_fingerprints(run).get("base", NO_BASE)
    return InitialCheckpoint(folder, fingerprint, tokenizer, newest)


def _print_if_unfinished(base: Path, folder: Path) -> None:
    """Print a line if the base is a run with steps to go; `folder` is its checkpoint."""
    remaining = locate.find_remaining_steps(base, folder)
    if remaining is not None:
        print(
            f"base      {base} is unfinished, at step {remaining.step:,} of "
            f"{remaining.total_steps:,}; to complete it first: {remaining.resume_command}",
            flush=True,
        )
