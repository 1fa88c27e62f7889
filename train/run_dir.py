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
from common.files import read_sealed, remove_leftovers, write_atomic, write_sealed
from common.machine import describe
from common.metrics_file import FILE
from common.options import load_yaml
from data.corpora.resolver import prepared_name, stands_for
from model.checkpoint.locate import CHECKPOINTS, newest, step_folder, steps

CONFIG, MADE, CHOICES, LOCK = "config.yaml", "run.json", "choices.json", "lock"

# What to do when a folder cannot become or stay the run that is wanted, in the words of make and of the command line.
ANOTHER_RUN = "name a new run: RUN=runs/NAME (--run runs/NAME)"
_CURES = {
    "tokenizer": "prepare the data with the run's own tokenizer",
    "base": "where --base leads there are other weights than the run began with; point it at those",
}


class Run:
    """A folder that a training run lives in. `start` is the checkpoint to go on from, None for a new run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.start: int | None = None
        self._lock: IO[str] | None = None

    def open(
        self, options: dict[str, Any], fingerprints: dict[str, Any], data: list[Path], device: torch.device
    ) -> None:
        """Make the folder, or check that it holds this very run and find its newest checkpoint. `data`: the shard sets.

        UserError if another process works in it, it holds something else, or the run was made with other data, shape,
        tokenizer or batches.
        """
        made = self.folder / MADE
        foreign = self.folder.exists() and not made.exists() and not (self.folder / LOCK).exists()
        if foreign and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise UserError(f"--run {self.folder} exists and is not a run: name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take()
        remove_leftovers(self.folder)
        if not self._begun():
            for remains in (made, self.folder / CHOICES):
                remains.unlink(missing_ok=True)
            shutil.rmtree(self.folder / "plan", ignore_errors=True)
        if not made.exists():
            shards = [str(folder.resolve()) for folder in data]
            write_sealed(made, {"made": describe(device), "shards": shards, "fingerprints": fingerprints})
        else:
            before = read_sealed(made, f": put a copy of it back, or {ANOTHER_RUN} (the checkpoints in {self.folder} can "
                                       "still be measured and talked to)")
            self._check_stand_ins(before["shards"], data)
            self._check(before["fingerprints"], fingerprints, options, [Path(shards) for shards in before["shards"]], data)
            self._find_start()
        text = yaml.safe_dump(options, allow_unicode=True, sort_keys=False)
        self._compare_config()
        write_atomic(self.folder / CONFIG, f"{_digest_line(text)}\n{text}")

    def _begun(self) -> bool:
        """Whether training ever began: options that were found to be wrong before that bind nobody."""
        return (self.folder / FILE).exists() or bool(steps(self.folder))

    def _find_start(self) -> None:
        (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        remove_leftovers(self.folder / CHECKPOINTS)
        self.start = newest(self.folder)
        if self.start is None and steps(self.folder):
            raise UserError(f"{self.folder}: every checkpoint is damaged; to start again, {ANOTHER_RUN}")
        for damaged in (step for step in steps(self.folder) if self.start is not None and step > self.start):
            # Out of the way, so that it neither counts as one of the newest nor stands where a good one will.
            bad = step_folder(self.folder, damaged)
            shutil.rmtree(bad.with_name(f"damaged-{bad.name}"), ignore_errors=True)
            bad.rename(bad.with_name(f"damaged-{bad.name}"))

    def _compare_config(self) -> None:
        path = self.folder / CONFIG
        if path.is_file():
            first, _, rest = path.read_text(encoding="utf-8", errors="replace").partition("\n")
            if first != _digest_line(rest):
                print(f"warning: {path} is not as this run wrote it: changed by hand, or damaged; check the values that the "
                      "run goes on with, which are written there now", file=sys.stderr)

    def must_be_there(self) -> None:
        """UserError if the folder was taken away: a checkpoint must not make a new one that nothing can go on from."""
        if not (self.folder / MADE).is_file():
            raise UserError(f"{self.folder} is gone: it was deleted or moved, or its disk was taken away; nothing can be saved "
                            f"there any more. Put it back and run the same command again, or {ANOTHER_RUN}")

    def _take(self) -> None:
        """Hold the folder until this process ends: two trainings in one folder would destroy each other."""
        self._lock = (self.folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{self.folder} is being trained by another process: wait for it, or {ANOTHER_RUN}") from None

    def _check_stand_ins(self, before: list[str], now: list[Path]) -> None:
        """UserError where a part of the sample stood in for a name, and what the name means is the real data by now."""
        for old, new in zip(map(Path, before), now, strict=False):
            if (name := stands_for(old)) is not None and prepared_name(new) == name:
                raise UserError(
                    f"{self.folder} was trained on the shipped sample's part, which stood in for {name} before the real {name} "
                    f"was prepared ({new}), and a run keeps its data: delete {self.folder}, or {ANOTHER_RUN}")

    def _check(
        self, before: dict[str, Any], now: dict[str, Any], options: dict[str, Any], old: list[Path], new: list[Path]
    ) -> None:
        """UserError with a line for each fingerprint that is another now; `old` and `new` are the shard sets."""
        problems = []
        for key, value in before.items():
            if now.get(key) == value:
                continue
            if key == "data":
                said = self._told("data")
                problems.append(self._other_data(_data(said, old), _data(options.get("data"), new), said))
            elif key == "base" and "none" in (value, now.get(key)):
                problems.append(self._with_and_without_base(self._told("base"), options.get("base")))
            else:
                said = "null" if value is None else value
                what = f"{key}{_difference(value, now.get(key))}"
                cure = _CURES.get(key, f"go on with --{key} {said}" if not isinstance(value, dict | list)
                                  else f"go on with what {self.folder / CONFIG} says")
                problems.append(f"{self.folder} was made with another {what}: {cure}, or {ANOTHER_RUN}")
        if problems:
            raise UserError("\n".join(problems))

    def _told(self, option: str) -> str | None:
        """What the run was told in an option; None where its configuration, which hands and rot may change, does not say it."""
        try:
            said = load_yaml(self.folder / CONFIG).get(option)
        except UserError:
            return None
        return said if isinstance(said, str) else None

    def _other_data(self, was: str, wanted: str, said: str | None) -> str:
        """The line about a run that is told other data than it was trained on."""
        if was == wanted:
            return (f"{self.folder} was trained on {was}, and what lies there now has other content: put back what it was made "
                    f"from, or {ANOTHER_RUN}")
        cure = f"go on with DATA={said} (--data {said})" if said else "name the data it was trained on in --data"
        return f"{self.folder} was trained on {was} and not on {wanted}: {cure}, or {ANOTHER_RUN}"

    def _with_and_without_base(self, was: str | None, wanted: str | None) -> str:
        """The line about a run that began from nothing and is told a base, or began with one and is told none."""
        if wanted in (None, "none"):
            cure = f"go on with BASE={was} (--base {was})" if was else "name them in --base"
            return f"{self.folder} began with the weights of {was or 'another run'}: {cure}, or {ANOTHER_RUN}"
        return f"{self.folder} is there already and began from nothing: to train the weights of {wanted}, {ANOTHER_RUN}"

    @property
    def start_folder(self) -> Path:
        """The checkpoint to go on from."""
        assert self.start is not None
        return step_folder(self.folder, self.start)

    def choices(self) -> dict[str, Any] | None:
        """What an earlier process of this run measured and chose, if it is there."""
        path = self.folder / CHOICES
        if not path.exists():
            return None
        try:
            return read_sealed(path)
        except UserError as error:
            print(f"warning: {error}; measuring this machine anew", file=sys.stderr)
            return None

    def keep_choices(self, choices: dict[str, Any]) -> None:
        """Write down what was measured and chosen."""
        write_sealed(self.folder / CHOICES, choices)


def _data(said: str | None, sets: list[Path]) -> str:
    """Data in words: what `--data` said, and the folders of the shard sets that this was."""
    names = ", ".join(folder.name for folder in sets)
    return f"{said} ({names})" if said and said != names else names


def _digest_line(text: str) -> str:
    return f"# sha256 of what follows: {hashlib.sha256(text.encode()).hexdigest()}"


def _difference(before: Any, now: Any) -> str:
    """What differs, as ` (before, now after)`, of a dict value by value; nothing of fingerprints, which say nobody anything."""
    if isinstance(before, int | float) and isinstance(now, int | float):
        return f" ({before}, now {now})"
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return f" ({', '.join(f'{key}: {before.get(key)}, now {now.get(key)}' for key in keys)})"
