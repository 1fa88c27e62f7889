"""The shard sets of a mixture, as `--data` names them."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.corpora.resolver import resolve_shard_set
from data.mixture import parse_mixture
from data.prepare.pipeline import format_left_out
from data.shards import ShardSet
from model.chat_template.template import Template
from train import distributed


@dataclass(frozen=True)
class MixtureSet:
    """A shard set of a mixture."""

    name: str  # as in --data
    shards: ShardSet
    weight: float  # how often an epoch has each sequence, on average
    # For tasks that come in while the learning rate falls: the share that all of them together have
    # of the rows at the end of the run.
    final_share: float | None = None

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Return values that identify the contents and the weight of the set, for JSON.

        Run directories store this object, so its keys must not be renamed.
        """
        fingerprint = {"set": self.shards.fingerprint, "weight": self.weight}
        if self.final_share is not None:
            fingerprint["final_share"] = self.final_share
        return fingerprint


def open_mixture(
    data: str, open_set: Callable[[int, str], ShardSet], final_share: float | None = None
) -> tuple[MixtureSet, ...]:
    """Return the sets that `data` names; `open_set` opens one by its index and its name.

    `final_share` is that of `MixtureSet`.
    """
    names, weights = parse_mixture(data)
    # The main process prepares what is missing, and the other ranks then open it.
    shard_sets = distributed.main_process_first(
        lambda: [open_set(index, name) for index, name in enumerate(names)]
    )
    return tuple(
        MixtureSet(name, shards, weight, final_share)
        for name, shards, weight in zip(names, shard_sets, weights, strict=True)
    )


def open_named_set(name: str, tokenizer: Path | None) -> ShardSet:
    """Open one set of --data; prepare it with `tokenizer` if it is not prepared yet."""
    folder = resolve_shard_set(name, tokenizer)
    # Only one process verifies the checksums, because that reads the whole set.
    shards = ShardSet.open(folder, checksums=distributed.is_main_process())
    if distributed.is_main_process():
        # Sets that were not written by `data.prepare` have no report.
        report = shards.manifest.get("report")
        for line in format_left_out(report, folder) if report else []:
            print(line, flush=True)
    return shards


def check_same_template(mixture_set: MixtureSet, tokenizer_path: Path, template: Template) -> None:
    """Raise UserError if a set was prepared with another chat template than the model has."""
    if not mixture_set.shards.matches_template(template):
        raise UserError(
            f"--data {mixture_set.name}: was prepared with another chat template than the model's: "
            f"prepare the raw files again with --tokenizer {shlex.quote(str(tokenizer_path))}"
        )
