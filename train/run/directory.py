"""A run directory: its lock, the record of the run in `run.json`, its options and checkpoints."""

import contextlib
import hashlib
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from common.errors import UserError
from common.files import (
    read_checksummed_json,
    remove_temporary_files,
    write_atomic,
    write_checksummed_json,
)
from common.locks import exclusive_lock
from common.machine import collect_environment
from common.run_layout import (
    CHECKPOINTS_DIR,
    COMPUTE_PLAN_FILE,
    CONFIG_FILE,
    LOCK_FILE,
    METRICS_FILE,
    PLAN_DIR,
    RUN_FILE,
    damaged_step_folder,
    list_steps,
    step_folder,
)
from model.checkpoint.locate import find_newest_step
from train.run.resume_check import find_differences

# The advice of an error about a directory that cannot hold the run that the options describe.
NEW_RUN_HINT = "name a new run: RUN=runs/NAME (--run runs/NAME)"
# The beginnings of differences in the length of a run, see `find_differences`.
_LENGTH_FINGERPRINTS = ("max_steps: ", "epochs: ")
# The beginnings of all differences that another RoPE scaling makes.
_SCALING_FINGERPRINTS = (
    "model.rope_scaling",
    "model.max_position_embeddings",
    "model.reading_heads",
)


class RunDir:
    """The directory of a training run.

    `start_step` is the step of the checkpoint to resume from, None for a new run or before `open`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start_step: int | None = None
        self._lock = contextlib.ExitStack()

    def open(self, options: dict[str, Any], record: dict[str, Any], device: torch.device) -> None:
        """Create the directory, or check that it holds this run and find its newest checkpoint.

        Args:
            options: the options to write to config.yaml.
            record: the record of the run for run.json, see `RunSpec.record`.
            device: the device that run.json names.

        Raises UserError if another process trains in the directory, if it is not a run, if all its
        checkpoints are damaged, or if `record` differs from that in its run.json.
        """
        self._create_or_check_folder()
        self._acquire_lock()
        try:
            self._create_or_resume(options, record, device)
        except BaseException:
            self.close()
            raise

    def _create_or_resume(
        self, options: dict[str, Any], record: dict[str, Any], device: torch.device
    ) -> None:
        """Write run.json, or compare it with `record` and find the newest checkpoint.

        The arguments are those of `open`.
        """
        remove_temporary_files(self.folder)
        run_file = self.folder / RUN_FILE
        if not self._has_training_records():
            # A start that failed before the first step, for example because of a wrong option, must
            # not keep the next start from other options.
            for path in (run_file, self.folder / COMPUTE_PLAN_FILE):
                path.unlink(missing_ok=True)
            shutil.rmtree(self.folder / PLAN_DIR, ignore_errors=True)
        if run_file.exists():
            self._check_record(record)
            self._find_start_checkpoint()
        else:
            # The key of the environment is "made" in the files of all versions.
            write_checksummed_json(run_file, {"made": collect_environment(device), **record})
        self._write_config(options)

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def _create_or_check_folder(self) -> None:
        """Create the directory. Raises UserError if it exists and holds anything but a run."""
        # The lock file is created before run.json, so a start that failed may have left it alone.
        is_run = (self.folder / RUN_FILE).exists() or (self.folder / LOCK_FILE).exists()
        is_empty = self.folder.is_dir() and not any(self.folder.iterdir())
        if self.folder.exists() and not is_run and not is_empty:
            raise UserError(f"--run {self.folder} exists and is not a run: name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)

    def _acquire_lock(self) -> None:
        """Lock the directory until `close`: two processes would overwrite each other's files.

        Raises UserError if another process holds the lock.
        """
        busy_message = (
            f"{self.folder} is being trained by another process: wait for it, or {NEW_RUN_HINT}"
        )
        self._lock.enter_context(exclusive_lock(self.folder / LOCK_FILE, busy_message))

    def _has_training_records(self) -> bool:
        return (self.folder / METRICS_FILE).exists() or bool(list_steps(self.folder))

    def _check_record(self, record: dict[str, Any]) -> None:
        """Raise UserError if the record in run.json cannot be read or differs from `record`."""
        stored = read_checksummed_json(
            self.folder / RUN_FILE,
            advice=f": put a copy of it back, or {NEW_RUN_HINT} (the checkpoints in {self.folder} "
            "can still be evaluated and chatted with)",
        )
        differences = find_differences(stored, record)
        has_other_scaling = any(line.startswith("model.rope_scaling") for line in differences)
        if has_other_scaling and all(
            line.startswith(_SCALING_FINGERPRINTS) for line in differences
        ):
            raise UserError(
                f"{self.folder} was started with another RoPE scaling (old -> new: "
                f"{', '.join(differences)}): to resume it, leave out --model.rope_scaling and "
                "--model.rope_factor; to scale its model further, start another run from it: "
                f"--base {shlex.quote(str(self.folder))} --run runs/NAME"
            )
        if differences:
            remedy = (
                "use another run directory, RUN=runs/NAME (--run runs/NAME), or give the old "
                f"values again; they are in {self.folder / CONFIG_FILE}"
            )
            # The learning rate of every step depends on the length of the run, and the model of a
            # run that starts from another one is that one's.
            has_other_length = any(line.startswith(_LENGTH_FINGERPRINTS) for line in differences)
            if has_other_length and not any(line.startswith("model") for line in differences):
                remedy = (
                    "the length of a run is fixed from its start; to train its model longer, start "
                    f"another run from it: {shlex.quote(f'BASE={self.folder}')} RUN=runs/NAME "
                    f"(--base {shlex.quote(str(self.folder))} --run runs/NAME); to resume this "
                    f"one, give the old values again; they are in {self.folder / CONFIG_FILE}"
                )
            if any(difference.startswith("data: ") for difference in differences):
                remedy += (
                    "; or, if only the version of this program has changed, which prepares the "
                    "data in another form now, train the weights on: "
                    f"{shlex.quote(f'BASE={self.folder}')} (--base) with another RUN"
                )
            lines = [
                f"{self.folder} was started with other values (old -> new):",
                *(f"  {difference}" for difference in differences),
                remedy,
            ]
            raise UserError("\n".join(lines))

    def _find_start_checkpoint(self) -> None:
        """Set `start_step` to the newest checkpoint that is not damaged; rename newer ones.

        Raises UserError if all checkpoints are damaged.
        """
        checkpoints = self.folder / CHECKPOINTS_DIR
        checkpoints.mkdir(exist_ok=True)
        remove_temporary_files(checkpoints)
        self.start_step = find_newest_step(self.folder)
        steps = list_steps(self.folder)
        if self.start_step is None:
            if steps:
                raise UserError(
                    f"{self.folder}: every checkpoint is damaged; to start again, {NEW_RUN_HINT}"
                )
            return
        for step in steps:
            if step > self.start_step:
                # Renamed, so that it does not count among the newest checkpoints, and the run can
                # write the checkpoint of this step again.
                renamed = damaged_step_folder(self.folder, step)
                shutil.rmtree(renamed, ignore_errors=True)
                step_folder(self.folder, step).rename(renamed)

    def _write_config(self, options: dict[str, Any]) -> None:
        """Write config.yaml with a checksum; print a warning if the old file does not match its."""
        path = self.folder / CONFIG_FILE
        if path.is_file():
            old_text = path.read_text(encoding="utf-8", errors="replace")
            first_line, _, rest = old_text.partition("\n")
            if first_line != _checksum_line(rest):
                print(
                    f"warning: {path} was edited by hand, or is damaged; check the values that the "
                    "run is resumed with, which replace it now",
                    file=sys.stderr,
                )
        text = yaml.safe_dump(options, allow_unicode=True, sort_keys=False)
        write_atomic(path, f"{_checksum_line(text)}\n{text}")

    def check_exists(self) -> None:
        """Raise UserError if the directory was deleted or moved during training.

        Saving a checkpoint would create the directory again, without the `run.json` that resuming
        needs.
        """
        if not (self.folder / RUN_FILE).is_file():
            raise UserError(
                f"{self.folder} is gone: it was deleted or moved, or its disk was removed; nothing "
                f"can be saved there. Put it back and run the same command again, or {NEW_RUN_HINT}"
            )

    @property
    def start_checkpoint(self) -> Path | None:
        """The folder of the checkpoint to resume from, None for a new run."""
        return None if self.start_step is None else step_folder(self.folder, self.start_step)

    def load_compute_plan(self) -> dict[str, Any] | None:
        """Return the record that `save_compute_plan` wrote, or None.

        A damaged file is None too, with a warning.
        """
        path = self.folder / COMPUTE_PLAN_FILE
        if not path.exists():
            return None
        try:
            return read_checksummed_json(path)
        except UserError as error:
            print(f"warning: {error}; tuning for this machine again", file=sys.stderr)
            return None

    def save_compute_plan(self, record: dict[str, Any]) -> None:
        """Write a record of the compute plan and the options that it was chosen for."""
        write_checksummed_json(self.folder / COMPUTE_PLAN_FILE, record)


def _checksum_line(text: str) -> str:
    """Return the first line of config.yaml, a comment with the checksum of the other lines."""
    return f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}"
