"""What a run begins with: a base, its tokenizer, its text; and whether a continued run's base is still the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.options import load_yaml
from data.corpora.resolver import SMALL_TOKENIZER, resolve
from data.shards import ShardSet, shard_sets_of_run, shards_of_run
from model.checkpoint import locate
from model.tokenizer.base import Tokenizer
from train import distributed
from train.options import PretrainOptions, SftOptions
from train.run_dir import ANOTHER_RUN, CONFIG, MADE

# The part of a mix that is the base's pretraining text.
REPLAY = "replay"


@dataclass(frozen=True)
class Base:
    """What a run begins with: `folder` has weights and tokenizer; without one, a tokenizer and random weights."""

    folder: Path | None
    tokenizer: Path
    fingerprint: str


def find_base(options: SftOptions | PretrainOptions, run: Path) -> Base:
    """What the options' `base` means. A run that has a checkpoint needs its base no more: the base may be gone."""
    made = run / MADE
    if made.is_file() and (step := locate.newest(run)) is not None:
        folder, fingerprint = _own_base(options, run)
        own = locate.step_folder(run, step)
        _check_tokenizer(options.tokenizer, run, own)
        return Base(folder, own, fingerprint)
    if options.base == "none":
        return Base(None, options.tokenizer or SMALL_TOKENIZER, "none")
    path = options.base or newest_pretrained(Path("runs"))
    if path is None:
        raise UserError("--base: there is no pretrained run in runs/ yet: make pretrain first, or begin from nothing with "
                        "--base none")
    if options.base is None:
        print(f"base      {path}, the pretraining run that was saved last; for another: BASE=runs/NAME (--base runs/NAME)",
              flush=True)
    # All of it: an adapter whose own base is gone is refused now, and not when the run is made.
    folder = locate.layers(Path(path))[-1]
    if options.tokenizer is not None:
        raise UserError(f"--tokenizer is for a run without a base: {path} has its own")
    _say_if_unfinished(Path(path), folder)
    return Base(folder, folder, locate.digest(folder))


def _say_if_unfinished(run: Path, folder: Path) -> None:
    """Print a line where a base is a run that has steps to go; `folder` is the checkpoint that it stands for."""
    if (left := locate.unfinished(run, folder)) is not None:
        print(f"base      {run} is unfinished, at step {left.step:,} of {left.steps:,}; to train it to its end first: "
              f"{left.cure}", flush=True)


def _own_base(options: SftOptions | PretrainOptions, run: Path) -> tuple[Path | None, str]:
    """The base that a continued run has on record and its fingerprint; of a base that is there, the fingerprint it has now:
    at the same path there may be other weights by now, or the options may name another one. One that cannot be used counts
    as gone, and a line says so: the run has weights of its own.
    """
    recorded = str(_fingerprints(run).get("base", ""))
    if options.base == "none" and recorded != "none":
        return None, "none"
    if isinstance(options.base, Path) and options.base.exists():
        try:
            folder = locate.find(options.base)
            return folder, locate.digest(folder)
        except UserError as problem:
            print(f"base      cannot be compared with what {run} began with, which goes on without it: {problem}", flush=True)
    config = run / CONFIG
    said = (load_yaml(config, "").get("base") if config.is_file() else None) or options.base
    return (None if said in (None, "none") else Path(said)), recorded


def _fingerprints(run: Path) -> dict[str, Any]:
    """Those of a run's `run.json`. UserError if it has none."""
    facts = read_json(run / MADE)
    found = facts.get("fingerprints") if isinstance(facts, dict) else None
    if not isinstance(found, dict):
        raise UserError(f"{run / MADE} does not say how the run was made: put a copy of it back, or move {run} elsewhere")
    return found


def _check_tokenizer(named: Path | None, run: Path, own: Path) -> None:
    """UserError where a continued run is told another tokenizer than it has. The file of its own may be gone by now."""
    config = run / CONFIG
    said = load_yaml(config, "").get("tokenizer") if config.is_file() else None
    if named is None or (str(named) == said and not named.exists()):
        return
    if Tokenizer.load(named).fingerprint != Tokenizer.load(own).fingerprint:
        raise UserError(f"--tokenizer {named}: {run} was made with another tokenizer; leave --tokenizer out, or {ANOTHER_RUN}")


def newest_pretrained(runs: Path) -> Path | None:
    """The pretraining run (whatever its name) whose newest checkpoint is the latest."""
    found = [(locate.step_folder(run, steps[-1]).stat().st_mtime_ns, run)
             for run in (path.parent for path in runs.glob(f"*/{MADE}"))
             if (steps := locate.steps(run)) and "template" not in _fingerprints(run)]
    return max(found)[1] if found else None


def open_sets(names: list[str], run: Path, base: Base) -> list[ShardSet]:
    """The shard sets of a mix, in its order, prepared with the base's tokenizer where they are not yet."""
    if set(names) == {REPLAY}:
        raise UserError("--data replay: is mixed into something, such as csl+replay:0.1")
    return distributed.first_alone(lambda: [
        replayed(run, base, index) if name == REPLAY else _shards(name, base) for index, name in enumerate(names)])


def replayed(run: Path, base: Base, index: int) -> ShardSet:
    """The pretraining text of the base; a run that exists has written down where it lies."""
    own = shard_sets_of_run(run, f"put it back, or {ANOTHER_RUN}") if locate.steps(run) else []
    if index < len(own):
        return ShardSet.open(own[index].folder, checksums=distributed.first())
    if base.folder is None:
        raise UserError("--data replay: is the base's pretraining text, and there is no base to have any")
    shards = shards_of_run(base.folder, "leave replay out of --data, or begin from a run that was pretrained here on one set")
    if shards.kind != "documents":
        raise UserError(f"--data replay: {base.folder} was fine-tuned, so what it was trained on is no text to replay: name "
                        "its data in --data, or begin from a pretraining run")
    return shards


def _shards(name: str, base: Base) -> ShardSet:
    shards = ShardSet.open(resolve(name, base.tokenizer), checksums=distributed.first())
    if shards.kind == "documents":
        raise UserError(f"--data {name}: is text without questions and answers: pretrain on it (python -m train.pretrain "
                        f"--data {name}); a mix has text only as replay, which is the base's own")
    return shards
