"""The answers that several steps learn from, stored in the run directory.

A run that is resumed between these steps no longer has the weights that the answers were drawn
from. A round of answers is a folder, round-000012, with the sha256 of its file in manifest.json.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.files import atomic_folder, check_manifest
from common.run_layout import ROLLOUTS_DIR, list_steps
from data.batching.group_rows import Group, Sample
from train.run.directory import NEW_RUN_HINT

_FILE = "answers.safetensors"


def save_groups(run: Path, round_index: int, updates: int, groups: Sequence[Group]) -> None:
    """Store the groups of a round, from which `updates` steps learn.

    Rounds that no checkpoint needs are deleted: those without one between two of their steps.
    """
    samples = [sample for group in groups for sample in group.samples]
    tensors = {
        "ids": np.concatenate([sample.ids for sample in samples]),
        "lengths": np.array([len(sample.ids) for sample in samples]),
        "group_sizes": np.array([len(group.samples) for group in groups]),
        "advantages": np.array([sample.advantage for sample in samples]),
        "measures": np.stack([sample.measures for sample in samples]),
    }
    for name in ("old_log_probs", "reference_log_probs"):
        arrays = [getattr(sample, name) for sample in samples]
        if arrays[0] is not None:
            tensors[name] = np.concatenate(arrays)
    with atomic_folder(_round_folder(run, round_index)) as folder:
        save_file(tensors, folder / _FILE)
    needed = {step // updates for step in list_steps(run) if step % updates} | {round_index}
    for folder in (run / ROLLOUTS_DIR).iterdir():
        if folder not in {_round_folder(run, index) for index in needed}:
            shutil.rmtree(folder)


def load_groups(run: Path, round_index: int, prompts: Sequence[np.ndarray]) -> list[Group]:
    """Return the stored groups of a round; `prompts` are their prompts, int64[p] each.

    Raises UserError if they are missing or damaged.
    """
    folder = _round_folder(run, round_index)
    problem = check_manifest(folder)
    if problem is not None:
        raise UserError(
            f"{problem}: the run cannot go on between two updates on these answers; put the file "
            f"back, delete the checkpoints after the last that is not between them, or "
            f"{NEW_RUN_HINT}"
        )
    tensors = load_file(folder / _FILE)
    stops = np.cumsum(tensors["lengths"])[:-1]
    samples = [
        Sample(ids, float(advantage), measures)
        for ids, advantage, measures in zip(
            np.split(tensors["ids"], stops),
            tensors["advantages"],
            tensors["measures"],
            strict=True,
        )
    ]
    for name in ("old_log_probs", "reference_log_probs"):
        if name in tensors:
            for sample, log_probs in zip(samples, np.split(tensors[name], stops), strict=True):
                setattr(sample, name, log_probs)
    remaining = iter(samples)
    return [
        Group(prompt, [next(remaining) for _ in range(size)])
        for prompt, size in zip(prompts, tensors["group_sizes"].tolist(), strict=True)
    ]


def _round_folder(run: Path, round_index: int) -> Path:
    return run / ROLLOUTS_DIR / f"round-{round_index:06d}"
