"""A curriculum: the share of tasks over any steps, and rows that none of the two plans misses."""

from pathlib import Path

import numpy as np
import pytest

from data.batching.collate import TextBatchLoader
from data.batching.curriculum import CurriculumPlan, Ramp
from data.batching.text_rows import Mixture, TextPlan
from data.sequences import Sequences, SequenceWriter

TASKS_FROM = 10_000  # ids of tasks begin here


def write_sequences(folder: Path, count: int, first: int) -> Sequences:
    """Write sequences of 20 tokens that count up from `first`: each token tells its place."""
    folder.mkdir()
    writer = SequenceWriter(folder, "train", 1 << 17)
    for number in range(count):
        writer.add(first + 20 * number + np.arange(20))
    writer.close()
    return Sequences(folder, "train")


def build_plan(folder: Path, ramp: Ramp) -> CurriculumPlan:
    """Return a plan of 3,000 tokens of text and 800 of tasks, in rows of 8."""
    folder.mkdir()
    plans = [
        TextPlan(
            Mixture((write_sequences(folder / name, count, first),), (1.0,)),
            seed=1,
            length=8,
            folder=folder / f"plan-{name}",
        )
        for name, count, first in (("text", 150, 0), ("tasks", 40, TASKS_FROM))
    ]
    return CurriculumPlan(plans[0], plans[1], ramp)


@pytest.mark.parametrize(
    "ramp",
    [
        Ramp(4, start=30, stop=100, share=0.5),
        Ramp(7, start=0, stop=51, share=1.0),
        Ramp(1, start=500, stop=1000, share=0.2),
        Ramp(256, start=1, stop=2, share=0.9),
        Ramp(8, start=5, stop=5, share=0.5),
    ],
)
def test_any_stretch_of_steps_has_its_share_to_within_a_row(ramp: Ramp) -> None:
    """Prevents a share that is missed by the rounding of every step, which adds up.

    The rows of a stretch are a difference of two sums, each half a row off at most.
    """
    # The mean of the line over a step is its height in the middle.
    middle = np.arange(ramp.stop) + 0.5 - ramp.start
    shares = ramp.share * np.maximum(middle, 0) / max(1, ramp.stop - ramp.start)
    wanted = np.concatenate([[0], np.cumsum(shares * ramp.rows_per_step)])
    rows = np.array([ramp.rows_before(step) for step in range(ramp.stop + 1)])
    errors = rows - wanted
    assert abs(errors).max() <= 0.5 + 1e-9
    per_step = np.diff(rows)
    assert per_step.min() >= 0 and per_step.max() <= ramp.rows_per_step
    assert not rows[: ramp.start + 1].any()


def test_last_steps_have_the_share_that_was_asked_for() -> None:
    """Prevents a ramp that ends at half of its share, or before the run does."""
    ramp = Ramp(100, start=200, stop=1000, share=0.5)
    assert ramp.rows_before(1000) - ramp.rows_before(990) == pytest.approx(10 * 50, abs=5)
    # The area of the triangle.
    assert ramp.rows_before(1000) == 100 * 800 * 0.5 / 2


def test_rows_of_both_plans_are_read_once_and_in_order(tmp_path: Path) -> None:
    """Prevents rows that a curriculum skips or repeats where a step has tasks."""
    ramp = Ramp(4, start=50, stop=150, share=0.5)
    plan = build_plan(tmp_path / "a", ramp)
    rows = [plan.row(number).tolist() for number in range(4 * ramp.stop)]
    text_only = rows[: 4 * ramp.start]
    assert text_only == [plan._text.row(number).tolist() for number in range(len(text_only))]
    tasks = [row for row in rows if row[0] >= TASKS_FROM]
    text = [row for row in rows if row[0] < TASKS_FROM]
    assert len(tasks) == ramp.rows_before(150) == 100
    assert tasks == [plan._tasks.row(number).tolist() for number in range(100)]
    assert text == [plan._text.row(number).tolist() for number in range(500)]
    # An epoch of the text has 375 rows.
    assert plan.epochs_completed(600) == pytest.approx(500 * 8 / 3000)
    # A row of either has no token of the other.
    assert min(map(min, tasks)) >= TASKS_FROM > max(map(max, text))


def test_a_step_is_the_same_in_any_order_and_for_any_number_of_ranks(tmp_path: Path) -> None:
    """Prevents other rows after a resume, or on several processes."""
    ramp = Ramp(4, start=2, stop=20, share=0.9)
    plan, again = build_plan(tmp_path / "a", ramp), build_plan(tmp_path / "b", ramp)
    whole = [TextBatchLoader(plan, 4).micro_batches(step, 4)[0].ids for step in range(20)]
    for step in (19, 3, 11):
        ids = [
            batch.ids.numpy()
            for rank in range(2)
            for batch in TextBatchLoader(again, 4, rank=rank, world_size=2).micro_batches(step, 1)
        ]
        assert np.array_equal(np.concatenate(ids), whole[step].numpy())
