"""Replay: pretraining text of the base mixed into fine-tuning, against forgetting.

`--data csl+replay:0.1` adds a tenth as many tokens of that text as the other sets have.
"""

from dataclasses import replace
from pathlib import Path

from common import run_layout
from common.errors import UserError
from data.batching.examples import Examples
from data.shards import ShardSet, load_run_shard_set, load_run_shard_sets
from train import distributed
from train.run.directory import NEW_RUN_HINT
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.spec import MixtureSet

# The name in --data.
REPLAY = "replay"


def open_replay_set(run: Path, base: InitialCheckpoint, index: int) -> ShardSet:
    """Open the pretraining text of the base, or on resume the set `index` of the run's own record.

    Raises UserError if the base is not a run that was pretrained here on a single set.
    """
    recorded: list[ShardSet] = []
    if run_layout.list_steps(run):
        recorded = load_run_shard_sets(run, f"put it back, or {NEW_RUN_HINT}")
    if index < len(recorded):
        return ShardSet.open(recorded[index].folder, checksums=distributed.is_main_process())
    if base.folder is None:
        raise UserError("--data replay: is the pretraining text of the base, and --base is none")
    shards = load_run_shard_set(
        base.folder,
        "leave replay out of --data, or start from a run that was pretrained here on a single set",
    )
    if not shards.kind.is_text:
        raise UserError(
            f"--data replay: {base.folder} is fine-tuned, and its data is not text to replay: name "
            "the data in --data, or start from a pretraining run"
        )
    return shards


def scale_replay_weights(
    sets: tuple[MixtureSet, ...], example_sets: list[Examples]
) -> tuple[MixtureSet, ...]:
    """Turn the weight of replay from a share of the other tokens into one of the replayed text."""
    totals = [int(examples.lengths(0).sum()) for examples in example_sets]
    rest = 0.0
    for each, total in zip(sets, totals, strict=True):
        if each.name != REPLAY:
            rest += each.weight * total
    scaled = []
    for each, total in zip(sets, totals, strict=True):
        weight = each.weight * rest / max(total, 1) if each.name == REPLAY else each.weight
        scaled.append(replace(each, weight=weight))
    return tuple(scaled)
