"""Find checkpoints: runs, their steps, exported folders, and the base of an adapter. Paths only.

A checkpoint is a folder with `model.safetensors` (in an export perhaps several files and an index),
`config.json` in Hugging Face's format, the tokenizer, and a manifest of checksums. An adapter has
PEFT's files in place of the weights, and refers to a base. A run holds its checkpoints as
`checkpoints/step-00001000/`.

Every option that takes a checkpoint accepts a run (its newest checkpoint that verifies, or its best
one if training stopped early), one of its steps, or any folder with those files.
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
from common.run_layout import (
    CHECKPOINTS_DIR,
    EARLY_STOP_FILE,
    RUN_FILE,
    RUNS_DIR,
    list_steps,
    step_folder,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
# The files of an adapter: two of PEFT's, and this project's record of the base model.
ADAPTER_WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_CONFIG_FILE = "adapter_config.json"
BASE_FILE = "base.json"
# Receives a message about a damaged checkpoint that is skipped.
WarnCallback = Callable[[str], None]


def _warn_on_stderr(problem: str) -> None:
    print(f"warning: {problem}", file=sys.stderr)


# Runs and their steps


def read_step(folder: Path) -> int | None:
    """Return the step of a run's checkpoint folder, or None for any other folder.

    An exported folder inside a run directory is not a checkpoint of the run.
    """
    # Follows the link `checkpoints/best`.
    folder = folder.resolve()
    is_in_run = (
        folder.parent.name == CHECKPOINTS_DIR and (folder.parent.parent / RUN_FILE).is_file()
    )
    if not is_in_run or not (folder / MANIFEST).is_file():
        return None
    step = read_json(folder / MANIFEST).get("step")
    return step if isinstance(step, int) else None


@dataclass(frozen=True)
class RemainingSteps:
    """The steps that an unfinished run has left, and the command that resumes it."""

    step: int
    """Step of the checkpoint."""
    total_steps: int
    resume_command: str


def _read_fingerprints(run: Path) -> dict[str, Any] | None:
    """Return the fingerprints in a run's `run.json`, or None if it has none."""
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
    """Return the command that trains a run with these fingerprints: pretrain, sft, dpo or grpo."""
    for command in ("dpo", "grpo"):
        if command in fingerprints:
            return command
    # Pretraining does not encode with a chat template, and so has a fingerprint of it.
    return "sft" if "template" in fingerprints else "pretrain"


def find_remaining_steps(run: Path, folder: Path) -> RemainingSteps | None:
    """Return the steps that `run` has left to train after its checkpoint `folder`.

    Returns None if it is complete or stopped early, if it was imported or averaged (its checkpoint
    is the last step), or if `run` is not a run.
    """
    if not (run / RUN_FILE).is_file() or (run / EARLY_STOP_FILE).is_file():
        return None
    fingerprints = _read_fingerprints(run) or {}
    step = read_step(folder)
    # Checkpoints of earlier versions do not record the number of steps.
    total_steps = read_json(folder / MANIFEST).get("steps", fingerprints.get("max_steps"))
    if step is None or not isinstance(total_steps, int) or step >= total_steps:
        return None
    command = f"make {training_command(fingerprints)} {shlex.quote(f'RUN={run}')}"
    return RemainingSteps(step, total_steps, command)


def list_runs(runs: Path = RUNS_DIR) -> list[Path]:
    """Return the runs in a folder that have checkpoints, the most recently saved first.

    The checkpoints are not verified.
    """
    saved_at = []  # (modification time of the newest checkpoint, run)
    for run in runs.glob("*"):
        steps = list_steps(run)
        if (run / RUN_FILE).is_file() and steps:
            saved_at.append((step_folder(run, steps[-1]).stat().st_mtime_ns, run))
    return [run for _, run in sorted(saved_at, reverse=True)]


def find_newest_run(
    runs: Path = RUNS_DIR, accept: Callable[[Path], bool] = lambda run: True
) -> Path | None:
    """Return the most recently saved run for which `accept` returns True, or None."""
    return next((run for run in list_runs(runs) if accept(run)), None)


def find_newest_step(run: Path, warn: WarnCallback = _warn_on_stderr) -> int | None:
    """Return the newest step whose checkpoint verifies, or None.

    `warn` is called with a message about each newer one that is damaged; by default it is printed
    to stderr.
    """
    for step in reversed(list_steps(run)):
        problem = check_manifest(step_folder(run, step))
        if problem is None:
            return step
        warn(f"{problem}; using the checkpoint before it")
    return None


def _find_best_step(run: Path, warn: WarnCallback) -> int | None:
    """Return the best step of a run that stopped early.

    Returns None for other runs and, after a call of `warn`, if the checkpoint of that step is
    damaged. Raises UserError if the record of early stopping is damaged.
    """
    file = run / EARLY_STOP_FILE
    if not file.is_file():
        return None
    result = read_checksummed_json(
        file, advice=": run the training command again, which writes it once more"
    )
    step = result.get("best")
    if not isinstance(step, int):
        raise UserError(f"{file} does not name the best step: run the training command again")
    if problem := check_manifest(step_folder(run, step)):
        warn(f"{problem}; using the newest checkpoint")
        return None
    return step


# Checkpoint folders


def resolve_checkpoint(path: Path, warn: WarnCallback = _warn_on_stderr) -> Path:
    """Return the checkpoint folder of `path`: a run, one of its steps, or an exported folder.

    `warn` is called with a message about each damaged checkpoint of a run that is skipped. Raises
    UserError if `path` has no usable checkpoint, or if a folder with a manifest is damaged.
    """
    if (path / RUN_FILE).is_file():
        step = _find_best_step(path, warn) or find_newest_step(path, warn)
        if step is None:
            raise UserError(f"{path} has no usable checkpoint: train it first, or name another run")
        return step_folder(path, step)
    if not (has_weights(path) and (path / CONFIG_FILE).is_file()) and not is_adapter(path):
        suggestion = suggest_run(path)
        if suggestion is not None:
            raise UserError(f"{path} is not a checkpoint: did you mean {suggestion}?")
        raise UserError(
            f"{path} is not a checkpoint: expected a run, a step folder, a folder with "
            f"{CONFIG_FILE} and {WEIGHTS_FILE}, or an adapter's with {ADAPTER_CONFIG_FILE} and "
            f"{ADAPTER_WEIGHTS_FILE}"
        )
    if (path / MANIFEST).is_file() and (problem := check_manifest(path)):
        raise UserError(f"{problem}: use another checkpoint")
    return path


def suggest_run(path: Path) -> Path | None:
    """Return `runs/PATH` if that exists and PATH does not, otherwise None.

    Messages suggest it to users who left out `runs/`.
    """
    suggestion = RUNS_DIR / path
    if path.is_absolute() or path.exists() or not suggestion.exists():
        return None
    return suggestion


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights, in one file or several."""
    return (folder / WEIGHTS_FILE).is_file() or (folder / WEIGHTS_INDEX_FILE).is_file()


def is_adapter(folder: Path) -> bool:
    """Return whether a checkpoint folder holds an adapter instead of weights."""
    files = (folder / ADAPTER_WEIGHTS_FILE, folder / ADAPTER_CONFIG_FILE)
    return not has_weights(folder) and all(file.is_file() for file in files)


def weights_files(folder: Path) -> list[Path]:
    """Return the weights files of a checkpoint folder, one or several.

    Raises UserError if the index of several files is damaged or names files that are not beside it.
    """
    if (folder / WEIGHTS_FILE).is_file():
        return [folder / WEIGHTS_FILE]
    index_file = folder / WEIGHTS_INDEX_FILE
    index = read_json(index_file)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    # A name with folders in it could lead out of the checkpoint.
    if not isinstance(weight_map, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in weight_map.values()
    ):
        raise UserError(
            f"{index_file} is not an index of weights: expected a weight_map of tensor names to "
            "files beside it"
        )
    files = [folder / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise UserError(
                f"{index_file} names {file.name[:100]!r}, which does not exist: copy it there"
            )
    return files


def weights_sha256(folder: Path) -> str:
    """Return the sha256 of the weights, or of the adapter, in a checkpoint folder.

    If it has a manifest, the digests in it are used, and the files are not read. For weights in
    several files, the result is the sha256 of their digests.
    """
    files = [folder / ADAPTER_WEIGHTS_FILE] if is_adapter(folder) else weights_files(folder)
    manifest = read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    entries = manifest.get("files", {})
    digests = []
    for file in files:
        entry = entries.get(file.name)
        digests.append(str(entry["sha256"]) if entry else sha256_file(file))
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


# Adapters and their bases


def adapter_chain(path: Path) -> list[Path]:
    """Return the folders that make up a checkpoint: a full model, then adapters in their order.

    An adapter may be trained on another one. Without adapters there is one folder. Raises UserError
    if a base is missing, or if an adapter is its own base, directly or through others.
    """
    folders = [resolve_checkpoint(path)]
    while is_adapter(folders[-1]):
        base = resolve_base(folders[-1])
        if any(base.resolve() == folder.resolve() for folder in folders):
            raise UserError(
                f"{base} is an adapter that is its own base: correct the path of the base in its "
                f"{BASE_FILE} or {ADAPTER_CONFIG_FILE}"
            )
        folders.append(base)
    return folders[::-1]


def check_is_imported(folder: Path) -> None:
    """Raise UserError if the folder of a full model is another program's.

    Its config would be read as a Llama's, but tokenizer and chat template have to be converted.
    """
    if (folder / "tokenizer.json").is_file() and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} was not exported by babyllama: import it with python -m model.import_hf "
            f"{shlex.quote(str(folder))} --run runs/NAME"
        )


def resolve_base(folder: Path) -> Path:
    """Return the checkpoint folder of the base model that the adapter in `folder` was trained on.

    Raises UserError if the base is missing, or if its weights have changed.
    """
    candidates, sha256 = _find_base_candidates(folder)
    existing = [path for path in candidates if path.exists()]
    for path in existing:
        try:
            base = resolve_checkpoint(path)
        except UserError as error:
            raise UserError(
                f"{folder} is an adapter, and its base cannot be used: {error}"
            ) from None
        if sha256 is None or weights_sha256(base) == sha256:
            return base
    # For the message: the folder whose weights differ or, if there is none, the recorded path.
    expected_path = (existing or candidates)[0]
    problem = "does not exist"
    if existing:
        problem = f"has weights with another sha256 than {str(sha256)[:12]}…"
    raise UserError(
        f"{folder} is an adapter, and its base {expected_path} {problem}: put the base back there"
    )


def _find_base_candidates(folder: Path) -> tuple[list[Path], str | None]:
    """Return the paths where an adapter's base may be, and the sha256 of its weights.

    The recorded path comes first, then the one relative to the adapter. The sha256 is None for an
    adapter that PEFT wrote, which does not record it. Raises UserError if no base is named.
    """
    if (folder / BASE_FILE).is_file():
        values = read_json(folder / BASE_FILE)
        keys = ("path", "relative", "sha256")
        if not isinstance(values, dict) or not _are_strings(values, keys):
            raise UserError(
                f"{folder / BASE_FILE} does not say where the adapter's base is: expected "
                f"{', '.join(keys)}"
            )
        # Resolved, because `save_adapter` records the path relative to the resolved folder.
        return [Path(values["path"]), folder.resolve() / values["relative"]], values["sha256"]
    values = read_json(folder / ADAPTER_CONFIG_FILE)
    name = values.get("base_model_name_or_path") if isinstance(values, dict) else None
    if not name or not isinstance(name, str):
        raise UserError(
            f"{folder / ADAPTER_CONFIG_FILE} does not name its base: write the base's folder under "
            "base_model_name_or_path"
        )
    return [Path(name), folder / name], None


def _are_strings(values: dict[str, Any], keys: tuple[str, ...]) -> bool:
    return all(isinstance(values.get(key), str) for key in keys)
