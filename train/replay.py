"""Replay: mix the base's pretraining text into fine-tuning, so that the model forgets less.

`--data csl+replay:0.1` adds a tenth as many tokens of that text as the other sets have.
"""

from dataclasses import replace
from pathlib import Path

from common import run_layout
from common.errors import UserError
from data.batching.examples import Examples
from data.mixture import REPLAY
from data.shards import ShardSet, load_run_shard_set, load_run_shard_sets
from train import distributed
from train.run.directory import NEW_RUN_HINT
from train.run.initial_checkpoint import InitialCheckpoint
from train.run.mixture import MixtureSet


def open_replay_set(run: Path, base: InitialCheckpoint, index: int) -> ShardSet:
    """Open the shard set that is replayed: the pretraining text of the base.

    `index` is the position of replay in --data. A run that is resumed opens the set that its
    run.json records at this position, because the base may be gone. Raises UserError if the base is
    not a run that was pretrained here on a single set.
    """
    recorded_sets: list[ShardSet] = []
    if run_layout.list_steps(run):
        recorded_sets = load_run_shard_sets(run, hint=f"put it back, or {NEW_RUN_HINT}")
    if index < len(recorded_sets):
        # Only one process verifies the checksums, because that reads the whole set.
        return ShardSet.open(recorded_sets[index].folder, checksums=distributed.is_main_process())
    if base.folder is None:
        raise UserError("--data replay: is the pretraining text of the base, and --base is none")
    shards = load_run_shard_set(
        base.folder,
        hint="leave replay out of --data, or start from a run that was pretrained here on a single "
        "set",
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
    """Return the sets with the weight of replay as epochs of its text, like all other weights.

    In --data the weight of replay is a fraction of the tokens of the other sets.
    """
    tokens_per_set = [int(examples.lengths(epoch=0).sum()) for examples in example_sets]
    other_tokens = 0.0
    for mixture_set, num_tokens in zip(sets, tokens_per_set, strict=True):
        if mixture_set.name != REPLAY:
            other_tokens += mixture_set.weight * num_tokens
    scaled = []
    for mixture_set, num_tokens in zip(sets, tokens_per_set, strict=True):
        weight = mixture_set.weight
        if mixture_set.name == REPLAY:
            weight = weight * other_tokens / max(num_tokens, 1)
        scaled.append(replace(mixture_set, weight=weight))
    return tuple(scaled)
