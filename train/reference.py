"""Log-probabilities of the answers of preferences under the model that a run starts from.

They are computed once, before the first step, and stored in the run directory: no second model is
in memory, a resumed run and all ranks use the same numbers, and a run on top of an adapter has the
model with that adapter as its reference.

    manifest.json         sha256 of the files, and what the numbers depend on
    train.npy             fp32[n, 2], sums over both answers of each pair
    validation.npy        fp32[k], those of each id of both answers of each pair
    validation_stops.npy  int64[n, 2], where each answer ends in validation.npy

A pair that does not fit a row has NaN as its sums and no ids.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.files import MANIFEST, atomic_folder, check_manifest, read_json
from common.progress import progress_bar
from data.batching.preference_rows import PreferenceExamples
from evaluate.metrics.preference_scores import PairScore, score_pairs
from model.llama import Llama
from model.precision import Precision
from train.autotune import autocast

_TRAIN_FILE, _VALIDATION_FILE, _STOPS_FILE = "train.npy", "validation.npy", "validation_stops.npy"


@dataclass(frozen=True)
class ReferenceLogProbs:
    """The stored log-probabilities of a run."""

    train: np.ndarray  # fp32[n, 2]
    _validation: np.ndarray
    _validation_stops: np.ndarray

    def validation(self, pair: int) -> PairScore:
        """Return the log-probabilities of a held-out pair."""
        flat_stops = self._validation_stops.reshape(-1)
        # The answer before this one ends where it begins.
        first = flat_stops[2 * pair - 1] if pair else 0
        middle, stop = self._validation_stops[pair]
        return PairScore(pair, self._validation[first:middle], self._validation[middle:stop])


def load_or_compute_reference(
    folder: Path,
    identity: dict[str, Any],
    load_model: Callable[[], Llama],
    train: Sequence[PreferenceExamples],
    validation: Sequence[PreferenceExamples],
    *,
    row_length: int,
    rows: int,
    precision: Precision,
) -> ReferenceLogProbs:
    """Return the log-probabilities in `folder`; compute and store them first if need be.

    `train` and `validation` are the pairs of all sets, numbered through each. What is stored is
    used if it verifies and was computed for the same `identity`. A batch has `rows` rows of
    `row_length` positions. Raises what `load_model` raises.
    """
    if not _is_current(folder, identity):
        shutil.rmtree(folder, ignore_errors=True)
        model = load_model()
        is_training = model.training
        with (
            atomic_folder(folder, {"identity": identity}) as output,
            autocast(model.lm_head.weight.device, precision),
        ):
            for name, array in _compute(model.eval(), train, validation, row_length, rows).items():
                np.save(output / name, array, allow_pickle=False)
        # It may be the model that is trained next.
        model.train(is_training)
    return ReferenceLogProbs(
        *(
            np.load(folder / name, mmap_mode="r", allow_pickle=False)
            for name in (_TRAIN_FILE, _VALIDATION_FILE, _STOPS_FILE)
        )
    )


def _compute(
    model: Llama,
    train: Sequence[PreferenceExamples],
    validation: Sequence[PreferenceExamples],
    row_length: int,
    rows: int,
) -> dict[str, np.ndarray]:
    """Return the arrays to store, by the names of their files."""
    sums = np.full((sum(map(len, train)), 2), np.nan, np.float32)
    for score in _score_all(model, train, row_length, rows):
        sums[score.pair] = [_sum(score.chosen), _sum(score.rejected)]
    nothing = np.zeros(0, np.float32)
    # Both answers of pair i are the arrays 2 i and 2 i + 1.
    answers = [nothing] * (2 * sum(map(len, validation)))
    for score in _score_all(model, validation, row_length, rows):
        answers[2 * score.pair : 2 * score.pair + 2] = [score.chosen, score.rejected]
    stops = np.cumsum([len(answer) for answer in answers], dtype=np.int64)
    return {
        _TRAIN_FILE: sums,
        _VALIDATION_FILE: np.concatenate([nothing, *answers]),
        _STOPS_FILE: stops.reshape(-1, 2),
    }


def _is_current(folder: Path, identity: dict[str, Any]) -> bool:
    """Return whether a folder holds whole log-probabilities that depend on the same."""
    if not (folder / MANIFEST).is_file() or check_manifest(folder):
        return False
    return bool(read_json(folder / MANIFEST).get("identity") == identity)


def _sum(log_probs: np.ndarray) -> float:
    """Return the sum of an answer as the objective computes it, in fp32."""
    return float(torch.from_numpy(log_probs).sum())


def _score_all(
    model: Llama, example_sets: Sequence[PreferenceExamples], row_length: int, rows: int
) -> Iterator[PairScore]:
    """Score the pairs of all sets that fit a row."""
    num_fitting = sum(int((examples.lengths(epoch=0) > 0).sum()) for examples in example_sets)
    with progress_bar("reference", num_fitting, "pairs", delay=5) as bar:
        for examples in example_sets:
            yield from score_pairs(model, examples, row_length, rows=rows, on_progress=bar.update)
