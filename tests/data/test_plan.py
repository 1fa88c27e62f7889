"""The order of data: every token is learned from once an epoch, and the order is a function of the step alone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.sequences import Sequences, ShardWriter


def sequences(
    folder: Path, lengths: list[int], first: int = 0, shard_tokens: int = 50
) -> Sequences:
    """Sequences in which every token of a set is another number."""
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, "train", 1 << 17, shard_tokens)
    for length in lengths:
        writer.add(np.arange(first, first + length))
        first += length
    writer.close()
    return Sequences(folder, "train")


@pytest.fixture
def one(tmp_path: Path) -> Sequences:
    draw = np.random.default_rng(0)
    return sequences(tmp_path / "one", draw.integers(1, 40, 60).tolist())


def plan_of(
    folder: Path, *parts: tuple[Sequences, float], length: int = 16, seed: int = 1
) -> TextPlan:
    mixture = Mixture(tuple(part for part, _ in parts), tuple(weight for _, weight in parts))
    return TextPlan(mixture, seed=seed, length=length, folder=folder)


def epochs(plan: TextPlan, count: int) -> list[list[np.ndarray]]:
    rows: list[list[np.ndarray]] = [[] for _ in range(count)]
    row = 0
    while (epoch := plan.epoch_of(row)) < count:
        rows[epoch].append(plan.row(row))
        row += 1
    return rows


def test_every_token_is_a_target_once_an_epoch(tmp_path: Path, one: Sequences) -> None:
    """Tokens dropped at row borders, or learned from twice."""
    for rows in epochs(plan_of(tmp_path / "plan", (one, 1.0)), 3):
        targets = Counter(int(token) for row in rows for token in row[1:])
        # The stream's first token has nothing before it; the last row is filled up from the start.
        missing = set(range(one.num_tokens)) - set(targets)
        twice = sum(count - 1 for count in targets.values())
        assert len(missing) <= 1
        assert twice <= 16


def test_rows_are_contiguous_slices_of_documents(tmp_path: Path, one: Sequences) -> None:
    """Documents torn up: inside a row every token follows its own predecessor unless a document ends there."""
    ends = set((np.cumsum(one.lengths()) - 1).tolist())
    breaks = 0
    for row in epochs(plan_of(tmp_path / "plan", (one, 1.0)), 1)[0]:
        assert len(row) == 17
        for before, after in zip(row, row[1:], strict=False):
            if after != before + 1:
                assert int(before) in ends
                breaks += 1
    assert breaks > 10


def test_order_differs_by_epoch_and_seed(tmp_path: Path, one: Sequences) -> None:
    """The same order again and again: overfitting to it; neighbours that always meet."""
    first, second = epochs(plan_of(tmp_path / "a", (one, 1.0)), 2)
    other = epochs(plan_of(tmp_path / "b", (one, 1.0), seed=2), 1)[0]
    assert not np.array_equal(first[0], second[0]) and not np.array_equal(first[0], other[0])


def test_a_long_document_is_spread_over_the_epoch(tmp_path: Path) -> None:
    """A batch made of one book."""
    parts = sequences(tmp_path / "long", [2000] + [20] * 100)
    rows = epochs(plan_of(tmp_path / "plan", (parts, 1.0)), 1)[0]
    inside = [index for index, row in enumerate(rows) if row[0] < 2000]
    assert np.median(np.diff(inside)) < 5 and max(inside) - min(inside) > 0.8 * len(rows)


def test_sources_are_shuffled_globally(tmp_path: Path, one: Sequences) -> None:
    """One task after another instead of all together."""
    two = sequences(tmp_path / "two", [20] * 60, first=10_000)
    rows = epochs(plan_of(tmp_path / "plan", (one, 1.0), (two, 1.0)), 1)[0]
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        share = np.mean([np.mean(row >= 10_000) for row in part])
        assert 0.3 < share < 0.7


def test_weights_repeat_and_fractional_weights_rotate(tmp_path: Path, one: Sequences) -> None:
    """A weight of a half that always shows the same half, or a weight of two that shows everything once."""
    two = sequences(tmp_path / "two", [20] * 60, first=10_000)
    plan = plan_of(tmp_path / "plan", (one, 2.0), (two, 0.25))
    seen: Counter[int] = Counter()
    for rows in epochs(plan, 4):
        # What fills up the end of an epoch's last row is not counted.
        counts = Counter(int(token) for row in rows for token in row[1:])
        assert sum(counts[token] >= 2 for token in range(one.num_tokens)) > 0.97 * one.num_tokens
        quarter = {(token - 10_000) // 20 for token in counts if token >= 10_000}
        assert 15 <= len(quarter) <= 16
        seen.update(quarter)
    assert len(seen) == 60 and sum(seen.values()) <= 64


def test_rows_are_identical_in_a_new_process(tmp_path: Path, one: Sequences) -> None:
    """A resume that goes on with other data, from the kept plan or from a new one, asked in any order."""
    plan = plan_of(tmp_path / "plan", (one, 1.0), length=8)
    expected = [plan.row(row).tolist() for row in range(400)]
    assert plan.epoch_of(399) >= 2
    again = plan_of(tmp_path / "plan", (one, 1.0), length=8)
    anew = plan_of(tmp_path / "other", (one, 1.0), length=8)
    for row in (399, 0, 250, 7):
        assert again.row(row).tolist() == anew.row(row).tolist() == expected[row]


def test_plan_of_different_data_is_rebuilt(tmp_path: Path, one: Sequences) -> None:
    """A folder of plans left from another length giving rows of the wrong one."""
    plan_of(tmp_path / "plan", (one, 1.0), length=8).row(0)
    assert len(plan_of(tmp_path / "plan", (one, 1.0), length=16).row(0)) == 17


def test_ranks_split_a_step_without_changing_it(tmp_path: Path, one: Sequences) -> None:
    """Another order of data on two GPUs than on one; a micro-batch size that changes what a step sees."""
    plan = plan_of(tmp_path / "plan", (one, 1.0))
    for step in (0, 3):
        whole = TextBatchLoader(plan, 4).micro_batches(step, 4)
        assert len(whole) == 1 and whole[0].ids.shape == (4, 16) and whole[0].targets.shape == (64,)
        assert (whole[0].targets.view(4, 16)[:, :-1] == whole[0].ids[:, 1:]).all()
        for world in (2, 4):
            shares = [
                TextBatchLoader(plan, 4, rank=rank, world_size=world).micro_batches(step, 1)
                for rank in range(world)
            ]
            ids = np.concatenate([batch.ids.numpy() for share in shares for batch in share])
            assert np.array_equal(ids, whole[0].ids.numpy())


def test_empty_dataset_and_empty_epoch(tmp_path: Path, one: Sequences) -> None:
    """A division by zero, or an index error days into a run."""
    empty = sequences(tmp_path / "empty", [])
    assert len(plan_of(tmp_path / "a", (one, 1.0), (empty, 1.0)).row(0)) == 17
    few = sequences(tmp_path / "few", [30, 30])
    with pytest.raises(UserError, match="without a single document"):
        epochs(plan_of(tmp_path / "b", (few, 0.2)), 5)


def test_a_corpus_shorter_than_a_row_still_trains(tmp_path: Path) -> None:
    """An endless loop or a short row when a beginner tries ten words."""
    tiny = sequences(tmp_path / "tiny", [3])
    plan = plan_of(tmp_path / "plan", (tiny, 1.0), length=8)
    assert plan.row(5).tolist() == [0, 1, 2] * 3
