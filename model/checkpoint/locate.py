"""Weights on disk, and where in a run they lie.

A checkpoint is a folder with `model.safetensors` (in an exported one perhaps cut into several, with an index beside them)
and `config.json` in Hugging Face's names, the tokenizer, and a manifest of checksums; a run keeps them under
`checkpoints/step-00001000/`. Whatever takes a checkpoint takes a run (its newest checkpoint that verifies; its best one
where training ended because scores became no better), one of its steps, or any folder with those files. In place of the
weights there may be an adapter (`model/checkpoint/adapters.py`): then the weights are its base's with the adapter merged into
them.
"""

import hashlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import MANIFEST, check_manifest, read_checksummed_json, read_json, sha256_file
from model.checkpoint import adapters
from model.checkpoint.adapters import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE

WEIGHTS_FILE, CONFIG_FILE, CHECKPOINTS_DIR = "model.safetensors", "config.json", "checkpoints"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
# In a run that ended because its scores became no better: which step was best.
EARLY_STOP_FILE = "ended.json"
# Where runs lie that are not named, and what says of a folder that it is a run.
RUNS_DIR, RUN_FILE = Path("runs"), "run.json"
# Takes what is wrong with a checkpoint that is passed over, and which one is used.
WarnCallback = Callable[[str], None]


def _warn_on_stderr(problem: str) -> None:
    print(f"warning: {problem}", file=sys.stderr)


def step_folder(run: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return run / CHECKPOINTS_DIR / f"step-{step:08d}"


def read_step(folder: Path) -> int | None:
    """The step of a checkpoint folder of a run, by its manifest; None of any other folder, an export inside a run too."""
    folder = folder.resolve()
    inside = folder.parent.name == CHECKPOINTS_DIR and (folder.parent.parent / RUN_FILE).is_file()
    step = (
        read_json(folder / MANIFEST).get("step")
        if inside and (folder / MANIFEST).is_file()
        else None
    )
    return step if isinstance(step, int) else None


@dataclass(frozen=True)
class RemainingSteps:
    """A run with steps to go: that of its checkpoint, all of them, and the command that trains the rest."""

    step: int
    total_steps: int
    resume_command: str


def _read_fingerprints(run: Path) -> dict[str, Any] | None:
    record = read_json(run / RUN_FILE)
    fingerprints = record.get("fingerprints") if isinstance(record, dict) else None
    return fingerprints if isinstance(fingerprints, dict) else None


def read_fingerprints(run: Path) -> dict[str, Any]:
    """Return the fingerprints in a run's `run.json`. Raises UserError if it has none."""
    fingerprints = _read_fingerprints(run)
    if fingerprints is None:
        raise UserError(
            f"{run / RUN_FILE} has no fingerprints: put a copy of it back, or move {run} elsewhere"
        )
    return fingerprints


def training_command(fingerprints: dict[str, Any]) -> str:
    """Return the command that trains a run with these fingerprints, "pretrain" or "sft"."""
    return "sft" if "template" in fingerprints else "pretrain"


def find_remaining_steps(run: Path, folder: Path) -> RemainingSteps | None:
    """What is left of a run that stands for its checkpoint `folder`; None of one that is complete or ended early, of one
    whose checkpoint does not say how many steps there are (it was imported), and of what is no run.
    """
    if not (run / RUN_FILE).is_file() or (run / EARLY_STOP_FILE).is_file():
        return None
    fingerprints = _read_fingerprints(run) or {}
    step = read_step(folder)
    # Checkpoints of earlier versions do not have the number of steps.
    last = read_json(folder / MANIFEST).get("steps", fingerprints.get("max_steps"))
    if step is None or not isinstance(last, int) or step >= last:
        return None
    command = f"make {training_command(fingerprints)} {shlex.quote(f'RUN={run}')}"
    return RemainingSteps(step, last, command)


def list_steps(run: Path) -> list[int]:
    """The steps of which a run has checkpoints, oldest first, verified or not."""
    folders = (run / CHECKPOINTS_DIR).glob("step-*")
    names = [folder.name.removeprefix("step-") for folder in folders]
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def list_runs(runs: Path = RUNS_DIR) -> list[Path]:
    """The runs in a folder that have checkpoints, verified or not: the one whose newest checkpoint is the latest first."""
    found = [
        (step_folder(run, saved[-1]).stat().st_mtime_ns, run)
        for run in runs.glob("*")
        if (run / RUN_FILE).is_file() and (saved := list_steps(run))
    ]
    return [run for _, run in sorted(found, reverse=True)]


def find_newest_run(
    runs: Path = RUNS_DIR, accept: Callable[[Path], bool] = lambda run: True
) -> Path | None:
    """Return the run with the latest checkpoint among those that `accept` is true of, or None."""
    return next((run for run in list_runs(runs) if accept(run)), None)


def find_newest_step(run: Path, warn: WarnCallback = _warn_on_stderr) -> int | None:
    """The newest step whose checkpoint verifies; a damaged one is named (on stderr) and passed over."""
    for step in reversed(list_steps(run)):
        problem = check_manifest(step_folder(run, step))
        if problem is None:
            return step
        warn(f"{problem}; using the checkpoint before it")
    return None


def _find_best_step(run: Path, warn: WarnCallback) -> int | None:
    """The best step of a run that ended because scores became no better; None of another run, or if it is damaged."""
    if not (run / EARLY_STOP_FILE).is_file():
        return None
    ended = read_checksummed_json(
        run / EARLY_STOP_FILE, ": run the training command again, which writes it anew"
    )
    step = ended.get("best")
    if not isinstance(step, int):
        raise UserError(
            f"{run / EARLY_STOP_FILE} does not say which step is the best: run the training command again"
        )
    if problem := check_manifest(step_folder(run, step)):
        warn(f"{problem}; using the newest checkpoint")
        return None
    return step


def resolve_checkpoint(path: Path, warn: WarnCallback = _warn_on_stderr) -> Path:
    """The folder with the weights that `path`, a run, one of its steps or an exported folder, stands for.

    `warn` is told of damaged checkpoints of a run that are passed over.
    """
    if (path / RUN_FILE).is_file():
        step = _find_best_step(path, warn) or find_newest_step(path, warn)
        if step is None:
            raise UserError(
                f"{path} has no checkpoint that can be used yet: train it first, or name another run"
            )
        return step_folder(path, step)
    if not (has_weights(path) and (path / CONFIG_FILE).is_file()) and not is_adapter(path):
        meant = suggest_run(path)
        cure = (
            f"did you mean {meant}?"
            if meant
            else (
                f"expected a run, a step folder, a folder with {CONFIG_FILE} and {WEIGHTS_FILE}, or an adapter's with {ADAPTER_CONFIG_FILE} and "
                f"{ADAPTER_WEIGHTS_FILE}"
            )
        )
        raise UserError(f"{path} is no checkpoint: {cure}")
    if (path / MANIFEST).is_file() and (problem := check_manifest(path)):
        raise UserError(f"{problem}: use another checkpoint")
    return path


def suggest_run(path: Path) -> Path | None:
    """The run that somebody meant who said a path that does not exist and left `runs/` out; None if there is none."""
    return (
        RUNS_DIR / path
        if not path.is_absolute() and (RUNS_DIR / path).exists() and not path.exists()
        else None
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds weights, in one file or several."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / WEIGHTS_INDEX_FILE).is_file()


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter instead of weights."""
    return not has_weights(folder) and all(
        (folder / name).is_file() for name in (ADAPTER_WEIGHTS_FILE, ADAPTER_CONFIG_FILE)
    )


def weights_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. UserError where an index is damaged or names files outside the folder."""
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index = read_json(folder / WEIGHTS_INDEX_FILE)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    ):
        raise UserError(
            f"{folder / WEIGHTS_INDEX_FILE} is no index of weights: expected a weight_map of names to files beside it"
        )
    files = [folder / name for name in sorted(set(names.values()))]
    if gone := next((file for file in files if not file.is_file()), None):
        raise UserError(
            f"{folder / WEIGHTS_INDEX_FILE} names {gone.name[:100]!r}, and there is no such file beside it: copy it there"
        )
    return files


def weights_sha256(folder: Path) -> str:
    """The sha256 of the weights, or of the adapter, in a checkpoint folder; its manifest's, where there is one.

    Of weights in several files it is that of their digests.
    """
    files = [folder / ADAPTER_WEIGHTS_FILE] if is_adapter(folder) else weights_files(folder)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    known = manifest.get("files", {})
    digests = [
        str(known[path.name]["sha256"]) if path.name in known else sha256_file(path)
        for path in files
    ]
    return (
        digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    )


def resolve_base(folder: Path) -> Path:
    """The checkpoint folder that a folder's adapter belongs to. UserError if it is gone, or holds other weights now."""
    candidates, sha256 = adapters.find_base_candidates(folder)
    existing = [place for place in candidates if place.exists()]
    for place in existing:
        try:
            base = resolve_checkpoint(place)
        except UserError as error:
            raise UserError(
                f"{folder} is an adapter, and its base cannot be used: {error}"
            ) from None
        if sha256 is None or weights_sha256(base) == sha256:
            return base
    why = f"are weights with another sha256 than {str(sha256)[:12]}…" if existing else "is nothing"
    raise UserError(
        f"{folder} is an adapter, and its base was expected at {(existing or candidates)[0]}, where there {why}: put "
        "the base back there"
    )


def adapter_chain(path: Path) -> list[Path]:
    """The folders that a checkpoint consists of: the one with weights, and the adapters on it, the innermost first.

    UserError if a base is gone, or one leads back to itself.
    """
    folders = [resolve_checkpoint(path)]
    while is_adapter(folders[-1]):
        base = resolve_base(folders[-1])
        if any(base.resolve() == folder.resolve() for folder in folders):
            raise UserError(
                f"{base} is an adapter that is its own base: write the folder of the weights there that it was "
                "trained on"
            )
        folders.append(base)
    return folders[::-1]
