"""What a run begins with: a base, its tokenizer, its text; and whether a continued run's base is still the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.options import load_yaml
from data.corpora.resolver import SMALL_TOKENIZER, resolve_shard_set
from data.shards import ShardSet, load_run_shard_set, load_run_shard_sets
from model.checkpoint import locate
from model.tokenizer import load_tokenizer
from train import distributed
from train.options import PretrainOptions, SftOptions
from train.run_dir import CONFIG_FILE, NEW_RUN_HINT, RUN_FILE

# The part of a mix that is the base's pretraining text.
REPLAY = "replay"


@dataclass(frozen=True)
class InitialCheckpoint:
    """What a run begins with: `folder` has weights and tokenizer; without one, a tokenizer and random weights."""

    folder: Path | None
    tokenizer_path: Path
    fingerprint: str


def resolve_initial_checkpoint(
    options: SftOptions | PretrainOptions, run: Path
) -> InitialCheckpoint:
    """What the options' `base` means. A run that has a checkpoint needs its base no more: the base may be gone."""
    made = run / RUN_FILE
    if made.is_file() and (step := locate.find_newest_step(run)) is not None:
        folder, fingerprint = _resolve_base_on_resume(options, run)
        own = locate.step_folder(run, step)
        _check_same_tokenizer(options.tokenizer, run, own)
        return InitialCheckpoint(folder, own, fingerprint)
    if options.base == "none":
        return InitialCheckpoint(None, options.tokenizer or SMALL_TOKENIZER, "none")
    path = options.base or find_newest_pretrain_run(Path("runs"))
    if path is None:
        raise UserError(
            "--base: there is no pretrained run in runs/ yet: make pretrain first, or begin from nothing with "
            "--base none"
        )
    if options.base is None:
        print(
            f"base      {path}, the pretraining run that was saved last; for another: BASE=runs/NAME (--base runs/NAME)",
            flush=True,
        )
    # All of it: an adapter whose own base is gone is refused now, and not when the run is made.
    folder = locate.adapter_chain(Path(path))[-1]
    if options.tokenizer is not None:
        raise UserError(f"--tokenizer is for a run without a base: {path} has its own")
    _print_if_unfinished(Path(path), folder)
    return InitialCheckpoint(folder, folder, locate.weights_sha256(folder))


def _print_if_unfinished(run: Path, folder: Path) -> None:
    """Print a line where a base is a run that has steps to go; `folder` is the checkpoint that it stands for."""
    if (left := locate.find_remaining_steps(run, folder)) is not None:
        print(
            f"base      {run} is unfinished, at step {left.step:,} of {left.total_steps:,}; to train it to its end first: "
            f"{left.resume_command}",
            flush=True,
        )


def _resolve_base_on_resume(
    options: SftOptions | PretrainOptions, run: Path
) -> tuple[Path | None, str]:
    """The base that a continued run has on record and its fingerprint; of a base that is there, the fingerprint it has now:
    at the same path there may be other weights by now, or the options may name another one. One that cannot be used counts
    as gone, and a line says so: the run has weights of its own.
    """
    saved_fingerprint = str(_load_fingerprints(run).get("base", ""))
    if options.base == "none" and saved_fingerprint != "none":
        return None, "none"
    if isinstance(options.base, Path) and options.base.exists():
        try:
            folder = locate.resolve_checkpoint(options.base)
            return folder, locate.weights_sha256(folder)
        except UserError as problem:
            print(
                f"base      cannot be compared with what {run} began with, which goes on without it: {problem}",
                flush=True,
            )
    config = run / CONFIG_FILE
    said = (load_yaml(config, "").get("base") if config.is_file() else None) or options.base
    return (None if said in (None, "none") else Path(said)), saved_fingerprint


def _load_fingerprints(run: Path) -> dict[str, Any]:
    """Those of a run's `run.json`. UserError if it has none."""
    facts = read_json(run / RUN_FILE)
    found = facts.get("fingerprints") if isinstance(facts, dict) else None
    if not isinstance(found, dict):
        raise UserError(
            f"{run / RUN_FILE} does not say how the run was made: put a copy of it back, or move {run} elsewhere"
        )
    return found


def _check_same_tokenizer(
    tokenizer_option: Path | None, run: Path, checkpoint_folder: Path
) -> None:
    """UserError where a continued run is told another tokenizer than it has. The file of its own may be gone by now."""
    config = run / CONFIG_FILE
    said = load_yaml(config, "").get("tokenizer") if config.is_file() else None
    if tokenizer_option is None or (
        str(tokenizer_option) == said and not tokenizer_option.exists()
    ):
        return
    if (
        load_tokenizer(tokenizer_option).fingerprint
        != load_tokenizer(checkpoint_folder).fingerprint
    ):
        raise UserError(
            f"--tokenizer {tokenizer_option}: {run} was made with another tokenizer; leave --tokenizer out, or {NEW_RUN_HINT}"
        )


def find_newest_pretrain_run(runs: Path) -> Path | None:
    """The pretraining run (whatever its name) whose newest checkpoint is the latest."""
    found = [
        (locate.step_folder(run, steps[-1]).stat().st_mtime_ns, run)
        for run in (path.parent for path in runs.glob(f"*/{RUN_FILE}"))
        if (steps := locate.list_steps(run)) and "template" not in _load_fingerprints(run)
    ]
    return max(found)[1] if found else None


def open_shard_sets(names: list[str], run: Path, base: InitialCheckpoint) -> list[ShardSet]:
    """The shard sets of a mix, in its order, prepared with the base's tokenizer where they are not yet."""
    if set(names) == {REPLAY}:
        raise UserError("--data replay: is mixed into something, such as csl+replay:0.1")
    return distributed.main_process_first(
        lambda: [
            open_replay_set(run, base, index) if name == REPLAY else _open_shard_set(name, base)
            for index, name in enumerate(names)
        ]
    )


def open_replay_set(run: Path, base: InitialCheckpoint, index: int) -> ShardSet:
    """The pretraining text of the base; a run that exists has written down where it lies."""
    own = (
        load_run_shard_sets(run, f"put it back, or {NEW_RUN_HINT}")
        if locate.list_steps(run)
        else []
    )
    if index < len(own):
        return ShardSet.open(own[index].folder, checksums=distributed.is_main_process())
    if base.folder is None:
        raise UserError(
            "--data replay: is the base's pretraining text, and there is no base to have any"
        )
    shards = load_run_shard_set(
        base.folder,
        "leave replay out of --data, or begin from a run that was pretrained here on one set",
    )
    if shards.kind != "documents":
        raise UserError(
            f"--data replay: {base.folder} was fine-tuned, so what it was trained on is no text to replay: name "
            "its data in --data, or begin from a pretraining run"
        )
    return shards


def _open_shard_set(name: str, base: InitialCheckpoint) -> ShardSet:
    shards = ShardSet.open(
        resolve_shard_set(name, base.tokenizer_path), checksums=distributed.is_main_process()
    )
    if shards.kind == "documents":
        raise UserError(
            f"--data {name}: is text without questions and answers: pretrain on it (python -m train.pretrain "
            f"--data {name}); a mix has text only as replay, which is the base's own"
        )
    return shards
