"""The base of a run that names none: the newest run of the training stage before it."""

import shlex
from pathlib import Path

from common import run_layout
from common.errors import UserError
from model.checkpoint import locate

# What a run of a command is called in messages.
_RUN_NAMES = {"pretrain": "pretraining run", "sft": "fine-tuning run"}


def find_newest_run_of(command: str, runs: Path = run_layout.RUNS_DIR) -> Path | None:
    """Return the run in `runs` of `python -m train.COMMAND` with the latest checkpoint, or None."""
    return locate.find_newest_run(
        runs, lambda run: locate.training_command(locate.read_fingerprints(run)) == command
    )


def resolve_newest_base(command: str, advice: str) -> Path:
    """Return the newest run of a command, and print a line about it.

    Raises UserError if there is none, which ends with `advice`, or if it is unfinished: a script
    (`make pretrain && make sft`) or a user may take it for a finished one.
    """
    name = _RUN_NAMES[command]
    newest = find_newest_run_of(command)
    if newest is None:
        raise UserError(f"--base: there is no {name} in runs/ yet: {advice}")
    remaining = locate.find_remaining_steps(newest, locate.resolve_checkpoint(newest))
    if remaining is not None:
        base_argument = shlex.quote(f"BASE={newest}")
        raise UserError(
            f"--base: {newest}, the newest {name}, is unfinished, at step "
            f"{remaining.step:,} of {remaining.total_steps:,}: complete it first "
            f"({remaining.resume_command}), or name it to train it as it is ({base_argument}, "
            f"--base {shlex.quote(str(newest))})"
        )
    print(
        f"base      {newest}, the newest {name}; for another: BASE=runs/NAME (--base runs/NAME)",
        flush=True,
    )
    return newest
