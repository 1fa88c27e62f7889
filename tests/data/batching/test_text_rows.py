"""Rows of text: every token is a target once an epoch, in an order that the step decides."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.batching.collate import TextBatchLoader
from data.batching.text_rows import Mixture, TextPlan
from data.sequences import Sequences, SequenceWriter


def write_sequences(folder: Path, lengths: list[int], first: int = 0) -> Sequences:
    """Write sequences whose tokens count up from `first`: each token tells its place."""
    folder.mkdir(parents=True)
    writer = SequenceWriter(folder, "train", 1 << 17, shard_tokens=50)
    for length in lengths:
        writer.add(np.arange(first, first + length))
        first += length
    writer.close()
    return Sequences(folder, "train")


@pytest.fixture
def one(tmp_path: Path) -> Sequences:
    """60 sequences of 1 to 39 tokens."""
    rng = np.random.default_rng(0)
    return write_sequences(tmp_path / "one", rng.integers(1, 40, 60).tolist())


def build_plan(
    folder: Path, *weighted_sets: tuple[Sequences, float], length: int = 16, seed: int = 1
) -> TextPlan:
    sequence_sets, weights = zip(*weighted_sets, strict=True)
    return TextPlan(Mixture(sequence_sets, weights), seed=seed, length=length, folder=folder)


def read_epochs(plan: TextPlan, count: int) -> list[list[np.ndarray]]:
    """Return the rows of the first epochs."""
    rows: list[list[np.ndarray]] = [[] for _ in range(count)]
    row = 0
    while (epoch := plan.epoch_of(row)) < count:
        rows[epoch].append(plan.row(row))
        row += 1
    return rows


def test_every_token_is_a_target_once_an_epoch(tmp_path: Path, one: Sequences) -> None:
    """Prevents tokens that are dropped where rows meet, or learned twice."""
    for rows in read_epochs(build_plan(tmp_path / "plan", (one, 1.0)), 3):
        targets = Counter(int(token) for row in rows for token in row[1:])
        # Nothing precedes the first token of the stream; the last row is filled up from the start.
        missing = set(range(one.num_tokens)) - set(targets)
        num_repeated = sum(count - 1 for count in targets.values())
        assert len(missing) <= 1
        assert num_repeated <= 16


def test_rows_are_contiguous_slices_of_documents(tmp_path: Path, one: Sequences) -> None:
    """Prevents torn documents: a token follows its predecessor unless a document ends there."""
    ends = set((np.cumsum(one.lengths()) - 1).tolist())
    num_breaks = 0
    for row in read_epochs(build_plan(tmp_path / "plan", (one, 1.0)), 1)[0]:
        assert len(row) == 17
        for before, after in zip(row, row[1:], strict=False):
            if after != before + 1:
                assert int(before) in ends
                num_breaks += 1
    assert num_breaks > 10


def test_order_differs_by_epoch_and_seed(tmp_path: Path, one: Sequences) -> None:
    """Prevents the same order in every epoch, in which the same neighbors always meet."""
    first, second = read_epochs(build_plan(tmp_path / "a", (one, 1.0)), 2)
    other = read_epochs(build_plan(tmp_path / "b", (one, 1.0), seed=2), 1)[0]
    assert not np.array_equal(first[0], second[0]) and not np.array_equal(first[0], other[0])


def test_a_long_document_is_spread_over_the_epoch(tmp_path: Path) -> None:
    """Prevents a batch made of a single book."""
    sequences = write_sequences(tmp_path / "long", [2000] + [20] * 100)
    rows = read_epochs(build_plan(tmp_path / "plan", (sequences, 1.0)), 1)[0]
    inside = [index for index, row in enumerate(rows) if row[0] < 2000]
    assert np.median(np.diff(inside)) < 5 and max(inside) - min(inside) > 0.8 * len(rows)


def test_sources_are_shuffled_globally(tmp_path: Path, one: Sequences) -> None:
    """Prevents one source after another instead of all together."""
    two = write_sequences(tmp_path / "two", [20] * 60, first=10_000)
    rows = read_epochs(build_plan(tmp_path / "plan", (one, 1.0), (two, 1.0)), 1)[0]
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        share = np.mean([np.mean(row >= 10_000) for row in part])
        assert 0.3 < share < 0.7


@pytest.mark.slow
def test_weights_repeat_and_fractional_weights_rotate(tmp_path: Path, one: Sequences) -> None:
    """Prevents a weight of 0.25 that always shows the same quarter, and 2.0 showing all once."""
    two = write_sequences(tmp_path / "two", [20] * 60, first=10_000)
    plan = build_plan(tmp_path / "plan", (one, 2.0), (two, 0.25))
    seen: Counter[int] = Counter()
    for rows in read_epochs(plan, 4):
        # The tokens that fill up the last row of an epoch are not counted.
        counts = Counter(int(token) for row in rows for token in row[1:])
        assert sum(counts[token] >= 2 for token in range(one.num_tokens)) > 0.97 * one.num_tokens
        quarter = {(token - 10_000) // 20 for token in counts if token >= 10_000}
        assert 15 <= len(quarter) <= 16
        seen.update(quarter)
    assert len(seen) == 60 and sum(seen.values()) <= 64


@pytest.mark.slow
def test_rows_are_identical_in_a_new_process(tmp_path: Path, one: Sequences) -> None:
    """Prevents a resume with other data, from the plan on disk or from a new one."""
    plan = build_plan(tmp_path / "plan", (one, 1.0), length=8)
    expected = [plan.row(row).tolist() for row in range(400)]
    assert plan.epoch_of(399) >= 2
    reopened = build_plan(tmp_path / "plan", (one, 1.0), length=8)
    rebuilt = build_plan(tmp_path / "other", (one, 1.0), length=8)
    for row in (399, 0, 250, 7):
        assert reopened.row(row).tolist() == rebuilt.row(row).tolist() == expected[row]


def test_plan_of_different_data_is_rebuilt(tmp_path: Path, one: Sequences) -> None:
    """Prevents a folder of plans for another row length giving rows of the wrong one."""
    build_plan(tmp_path / "plan", (one, 1.0), length=8).row(0)
    assert len(build_plan(tmp_path / "plan", (one, 1.0), length=16).row(0)) == 17


def test_ranks_split_a_step_without_changing_it(tmp_path: Path, one: Sequences) -> None:
    """Prevents another order of data on two GPUs or with another micro-batch size."""
    plan = build_plan(tmp_path / "plan", (one, 1.0))
    for step in (0, 3):
        (whole,) = TextBatchLoader(plan, 4).micro_batches(step, 4)
        assert whole.ids.shape == (4, 16) and whole.targets.shape == (64,)
        assert (whole.targets.view(4, 16)[:, :-1] == whole.ids[:, 1:]).all()
        for world_size in (2, 4):
            loaders = [
                TextBatchLoader(plan, 4, rank=rank, world_size=world_size)
                for rank in range(world_size)
            ]
            ids = [
                batch.ids.numpy() for loader in loaders for batch in loader.micro_batches(step, 1)
            ]
            assert np.array_equal(np.concatenate(ids), whole.ids.numpy())


def test_empty_dataset_and_empty_epoch(tmp_path: Path, one: Sequences) -> None:
    """Prevents a division by zero, or an index error days into a run."""
    empty = write_sequences(tmp_path / "empty", [])
    assert len(build_plan(tmp_path / "a", (one, 1.0), (empty, 1.0)).row(0)) == 17
    few = write_sequences(tmp_path / "few", [30, 30])
    with pytest.raises(UserError, match="without a single document"):
        read_epochs(build_plan(tmp_path / "b", (few, 0.2)), 5)


def test_a_corpus_shorter_than_a_row_still_trains(tmp_path: Path) -> None:
    """Prevents an endless loop or a short row when a beginner tries ten words."""
    tiny = write_sequences(tmp_path / "tiny", [3])
    plan = build_plan(tmp_path / "plan", (tiny, 1.0), length=8)
    assert plan.row(5).tolist() == [0, 1, 2] * 3


def test_document_parts_are_what_the_rows_hold(tmp_path: Path, one: Sequences) -> None:
    """Prevents a count of long pasts that the rows do not have."""
    plan = build_plan(tmp_path / "plan", (one, 1.0))
    ends = set((np.cumsum(one.lengths()) - 1).tolist())
    expected = []
    for row in read_epochs(plan, 1)[0]:
        size = 0
        for token in row[:-1]:
            size += 1
            if int(token) in ends:
                expected.append(size)
                size = 0
        expected.append(size)
    parts = plan.document_parts(0)
    assert parts.sum() == one.num_tokens and parts.max() == 16
    # The last row is filled up from the beginning of the stream.
    difference = Counter(size for size in expected if size) - Counter(parts.tolist())
    assert difference.total() <= 16 and not Counter(parts.tolist()) - Counter(expected)
