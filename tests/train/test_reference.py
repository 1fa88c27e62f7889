"""The stored log-probabilities of the reference: computed once, verified, exact."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.llama import Llama
from tests.helpers.preferences import PairList, random_pairs
from tests.helpers.random_llama import random_llama
from train.reference import ReferenceLogProbs, load_or_compute_reference

TRAIN = random_pairs((7, 5, 9), (3, 30, 4), (6, 8, 1))
VALIDATION = random_pairs((3, 40, 4), (2, 2, 3), (5, 1, 6))


class Loader:
    """Counts how often the model is asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Llama:
        self.calls += 1
        return random_llama()


def load(folder: Path, loader: Loader, **changes: object) -> ReferenceLogProbs:
    """Load or compute the reference of two sets, of which the second begins with pair 3."""
    second = [pair._replace(pair=3 + pair.pair) for pair in TRAIN]
    return load_or_compute_reference(
        folder,
        {"base": "a", **changes},
        loader,
        [PairList(TRAIN, 24), PairList(second, 24)],  # type: ignore[list-item]
        [PairList(VALIDATION, 24)],  # type: ignore[list-item]
        row_length=24,
        rows=2,
        precision="fp32",
    )


def test_reference_has_the_sums_of_all_pairs_that_fit(tmp_path: Path) -> None:
    """Prevents the numbers of one pair for another, of a set or of a row."""
    reference = load(tmp_path / "reference", Loader())
    model = random_llama()
    assert reference.train.shape == (6, 2) and reference.train.dtype == np.float32
    for index in (0, 2, 3, 5):
        pair = TRAIN[index % 3]
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            expected = log_probs(model, pair.prompt, answer)
            assert reference.train[index, side] == pytest.approx(expected.sum(), abs=1e-4)
    assert np.isnan(reference.train[[1, 4]]).all()
    for index in (1, 2):
        pair, score = VALIDATION[index], reference.validation(index)
        for answer, own in ((pair.chosen, score.chosen), (pair.rejected, score.rejected)):
            np.testing.assert_allclose(own, log_probs(model, pair.prompt, answer), atol=1e-5)


@torch.no_grad()
def log_probs(model: Llama, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Return the log-probabilities of an answer's ids, of a conversation alone."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]))
    scores = model(ids[None])[0, :-1].log_softmax(-1).gather(1, ids[1:, None])
    return scores[-len(answer) :, 0].numpy()


def test_reference_is_computed_once(tmp_path: Path) -> None:
    """Prevents a resumed run with the trained model as its own reference."""
    loader = Loader()
    first = load(tmp_path / "reference", loader)
    second = load(tmp_path / "reference", loader)
    assert loader.calls == 1
    assert np.array_equal(first.train, second.train, equal_nan=True)


@pytest.mark.parametrize("name", ["train.npy", "validation.npy"])
def test_damaged_or_foreign_reference_is_computed_again(tmp_path: Path, name: str) -> None:
    """Prevents training against flipped bits, or against another base."""
    loader = Loader()
    folder = tmp_path / "reference"
    before = load(folder, loader).train.copy()
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    assert np.array_equal(load(folder, loader).train, before, equal_nan=True)
    load(folder, loader, base="b")
    assert loader.calls == 3
