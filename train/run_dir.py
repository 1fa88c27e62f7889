"""A run's folder: how it was made, what it may go on with, and what would make it another run."""

import fcntl
import hashlib
import shutil
import sys
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from common.errors import UserError
from common.files import (
    read_checksummed_json,
    remove_temporary_files,
    write_atomic,
    write_checksummed_json,
)
from common.machine import collect_environment
from common.metrics_file import METRICS_FILE
from common.options import load_yaml
from data.corpora.resolver import corpus_name, replaced_corpus_name
from model.checkpoint.locate import CHECKPOINTS_DIR, find_newest_step, list_steps, step_folder

CONFIG_FILE, RUN_FILE, COMPUTE_PLAN_FILE, LOCK_FILE = (
    "config.yaml",
    "run.json",
    "choices.json",
    "lock",
)

# What to do when a folder cannot become or stay the run that is wanted, in the words of make and of the command line.
NEW_RUN_HINT = "name a new run: RUN=runs/NAME (--run runs/NAME)"
_FIX_HINTS = {
    "tokenizer": "prepare the data with the run's own tokenizer",
    "base": "where --base leads there are other weights than the run began with; point it at those",
}


class RunDir:
    """A folder that a training run lives in. `start_step` is the checkpoint to go on from, None for a new run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start_step: int | None = None
        self._lock: IO[str] | None = None

    def open(
        self,
        options: dict[str, Any],
        fingerprints: dict[str, Any],
        shard_folders: list[Path],
        device: torch.device,
    ) -> None:
        """Make the folder, or check that it holds this very run and find its newest checkpoint. `shard_folders`: the shard sets.

        UserError if another process works in it, it holds something else, or the run was made with other data, shape,
        tokenizer or batches.
        """
        run_file = self.folder / RUN_FILE
        foreign = (
            self.folder.exists()
            and not run_file.exists()
            and not (self.folder / LOCK_FILE).exists()
        )
        if foreign and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"--run {self.folder} exists and is not a run: name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._acquire_lock()
        remove_temporary_files(self.folder)
        if not self._has_training_records():
            for remains in (run_file, self.folder / COMPUTE_PLAN_FILE):
                remains.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "plan", ignore_errors=True)
        if not run_file.exists():
            shards = [str(folder.resolve()) for folder in shard_folders]
            write_checksummed_json(
                run_file,
                {
                    "made": collect_environment(device),
                    "shards": shards,
                    "fingerprints": fingerprints,
                },
            )
        else:
            before = read_checksummed_json(
                run_file,
                f": put a copy of it back, or {NEW_RUN_HINT} (the checkpoints in {self.folder} can "
                "still be measured and talked to)",
            )
            self._check_stand_ins(before["shards"], shard_folders)
            self._check_fingerprints(
                before["fingerprints"],
                fingerprints,
                options,
                [Path(shards) for shards in before["shards"]],
                shard_folders,
            )
            self._find_start_checkpoint()
        text = yaml.safe_dump(options, allow_unicode=True, sort_keys=False)
        self._warn_if_config_edited()
        write_atomic(self.folder / CONFIG_FILE, f"{_sha256_line(text)}\n{text}")

    def _has_training_records(self) -> bool:
        """Whether training ever began: options that were found to be wrong before that bind nobody."""
        return (self.folder / METRICS_FILE).exists() or bool(list_steps(self.folder))

    def _find_start_checkpoint(self) -> None:
        (self.folder / CHECKPOINTS_DIR).mkdir(exist_ok=True)
        remove_temporary_files(self.folder / CHECKPOINTS_DIR)
        self.start_step = find_newest_step(self.folder)
        if self.start_step is None and list_steps(self.folder):
            raise UserError(
                f"{self.folder}: every checkpoint is damaged; to start again, {NEW_RUN_HINT}"
            )
        for damaged in (
            step
            for step in list_steps(self.folder)
            if self.start_step is not None and step > self.start_step
        ):
            # Out of the way, so that it neither counts as one of the newest nor stands where a good one will.
            bad = step_folder(self.folder, damaged)
            shutil.rmtree(bad.with_name(f"damaged-{bad.name}"), ignore_errors=True)
            bad.rename(bad.with_name(f"damaged-{bad.name}"))

    def _warn_if_config_edited(self) -> None:
        path = self.folder / CONFIG_FILE
        if path.is_file():
            first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            if first != _sha256_line(rest):
                print(
                    f"warning: {path} is not as this run wrote it: changed by hand, or damaged; check the values that the "
                    "run goes on with, which are written there now",
                    file=sys.stderr,
                )

    def check_exists(self) -> None:
        """UserError if the folder was taken away: a checkpoint must not make a new one that nothing can go on from."""
        if not (self.folder / RUN_FILE).is_file():
            raise UserError(
                f"{self.folder} is gone: it was deleted or moved, or its disk was taken away; nothing can be saved "
                f"there any more. Put it back and run the same command again, or {NEW_RUN_HINT}"
            )

    def _acquire_lock(self) -> None:
        """Hold the folder until this process ends: two trainings in one folder would destroy each other."""
        self._lock = (self.folder / LOCK_FILE).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.folder} is being trained by another process: wait for it, or {NEW_RUN_HINT}"
            ) from None

    def _check_stand_ins(self, old_shards: list[str], new_shards: list[Path]) -> None:
        """UserError where a part of the sample stood in for a name, and what the name means is the real data by now."""
        for old, new in zip(map(Path, old_shards), new_shards, strict=False):
            if (name := replaced_corpus_name(old)) is not None and corpus_name(new) == name:
                raise UserError(
                    f"{self.folder} was trained on the shipped sample's part, which stood in for {name} before the real {name} "
                    f"was prepared ({new}), and a run keeps its data: delete {self.folder}, or {NEW_RUN_HINT}"
                )

    def _check_fingerprints(
        self,
        old_fingerprints: dict[str, Any],
        new_fingerprints: dict[str, Any],
        options: dict[str, Any],
        old_shards: list[Path],
        new_shards: list[Path],
    ) -> None:
        """UserError with a line for each fingerprint that is another now; `old_shards` and `new_shards` are the shard sets."""
        problems = []
        for key, value in old_fingerprints.items():
            if new_fingerprints.get(key) == value:
                continue
            if key == "data":
                config_value = self._config_value("data")
                problems.append(
                    self._data_mismatch_message(
                        _format_data(config_value, old_shards),
                        _format_data(options.get("data"), new_shards),
                        config_value,
                    )
                )
            elif key == "base" and "none" in (value, new_fingerprints.get(key)):
                problems.append(
                    self._base_mismatch_message(self._config_value("base"), options.get("base"))
                )
            else:
                config_value = "null" if value is None else value
                what = f"{key}{_format_difference(value, new_fingerprints.get(key))}"
                cure = _FIX_HINTS.get(
                    key,
                    f"go on with --{key} {config_value}"
                    if not isinstance(value, dict | list)
                    else f"go on with what {self.folder / CONFIG_FILE} says",
                )
                problems.append(
                    f"{self.folder} was made with another {what}: {cure}, or {NEW_RUN_HINT}"
                )
        if problems:
            raise UserError("\n".join(problems))

    def _config_value(self, option: str) -> str | None:
        """What the run was told in an option; None where its configuration, which hands and rot may change, does not say it."""
        try:
            said = load_yaml(self.folder / CONFIG_FILE).get(option)
        except UserError:
            return None
        return said if isinstance(said, str) else None

    def _data_mismatch_message(self, old_data: str, new_data: str, data_option: str | None) -> str:
        """The line about a run that is told other data than it was trained on."""
        if old_data == new_data:
            return (
                f"{self.folder} was trained on {old_data}, and what lies there now has other content: put back what it was made "
                f"from, or {NEW_RUN_HINT}"
            )
        cure = (
            f"go on with DATA={data_option} (--data {data_option})"
            if data_option
            else "name the data it was trained on in --data"
        )
        return f"{self.folder} was trained on {old_data} and not on {new_data}: {cure}, or {NEW_RUN_HINT}"

    def _base_mismatch_message(self, old_base: str | None, new_base: str | None) -> str:
        """The line about a run that began from nothing and is told a base, or began with one and is told none."""
        if new_base in (None, "none"):
            cure = (
                f"go on with BASE={old_base} (--base {old_base})"
                if old_base
                else "name them in --base"
            )
            return f"{self.folder} began with the weights of {old_base or 'another run'}: {cure}, or {NEW_RUN_HINT}"
        return f"{self.folder} is there already and began from nothing: to train the weights of {new_base}, {NEW_RUN_HINT}"

    @property
    def start_checkpoint(self) -> Path:
        """The checkpoint to go on from."""
        assert self.start_step is not None
        return step_folder(self.folder, self.start_step)

    def load_compute_plan(self) -> dict[str, Any] | None:
        """What an earlier process of this run measured and chose, if it is there."""
        path = self.folder / COMPUTE_PLAN_FILE
        if not path.exists():
            return None
        try:
            return read_checksummed_json(path)
        except UserError as error:
            print(f"warning: {error}; measuring this machine anew", file=sys.stderr)
            return None

    def save_compute_plan(self, record: dict[str, Any]) -> None:
        """Write down what was measured and chosen."""
        write_checksummed_json(self.folder / COMPUTE_PLAN_FILE, record)


def _format_data(data_option: str | None, sets: list[Path]) -> str:
    """Data in words: what `--data` said, and the folders of the shard sets that this was."""
    names = ", ".join(folder.name for folder in sets)
    return f"{data_option} ({names})" if data_option and data_option != names else names


def _sha256_line(text: str) -> str:
    return f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}"


def _format_difference(before: Any, now: Any) -> str:
    """What differs, as ` (before, now after)`, of a dict value by value; nothing of fingerprints, which say nobody anything."""
    if isinstance(before, int | float) and isinstance(now, int | float):
        return f" ({before}, now {now})"
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f" ({', '.join(f'{key}: {before.get(key)}, now {now.get(key)}' for key in keys)})"
