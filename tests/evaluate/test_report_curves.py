"""The curves in the report are drawn where their values lie."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from evaluate.report.plots import MARKED_POINTS, draw
from tests.helpers.reports import SVG, make_run, page, vertices
from train.metrics_log import MetricsLog


def test_curves_are_drawn_with_their_values(tmp_path: Path) -> None:
    """An empty pair of axes, a curve of another measure, runs drawn on different scales in one picture."""
    drawn = {1: [9.0, 5.0, 7.5, 3.0, 1.0], 2: [8.0, 6.5, 2.0]}
    folders = [make_run(tmp_path / str(run), losses, {step * 10: {"loss": loss / 2, "rouge_l": 1 / loss, "tokens": 5}
               for step, loss in enumerate(losses, 1)}) for run, losses in drawn.items()]
    found = page(*folders).pictures()
    assert list(found) == ["train loss over steps", "validation loss over steps", "validation rouge l over steps"]
    scores = (lambda loss: loss, lambda loss: loss / 2, lambda loss: 1 / loss)
    for picture, score in zip(found.values(), scores, strict=True):
        points = {run: np.array([[10 * step, score(loss)] for step, loss in enumerate(losses, 1)])
                  for run, losses in drawn.items()}
        corners = {run: vertices(picture, run) for run in drawn}
        assert [len(corners[run]) for run in drawn] == [5, 3]
        for axis in (0, 1):
            # The axes' scale is read off the first run; all must lie where it says.
            slope, offset = np.polyfit(points[1][:, axis], corners[1][:, axis], 1)
            assert slope > 0 if axis == 0 else slope < 0  # An SVG's y points down.
            for run in drawn:
                np.testing.assert_allclose(slope * points[run][:, axis] + offset, corners[run][:, axis], atol=1e-3)


def test_sets_that_are_scored_at_one_step_have_their_own_curves(tmp_path: Path) -> None:
    """A zigzag between the scores of two datasets of a mix, and the best of one shown for the other."""
    folder = make_run(tmp_path / "run", [3.0])
    log = MetricsLog(folder, 100)
    for step in (10, 20):
        for name, score in (("csl", 0.25), ("lcsts", 0.5)):
            log.write("rouge", step, rouge_1=score * step / 20, examples=100, set=name)
    log.close()
    read = page(folder)
    assert read.row("rouge csl rouge 1, best") == ["0.2500 (step 20)"]
    assert read.row("rouge lcsts rouge 1, best") == ["0.5000 (step 20)"] and read.row("rouge csl examples") == ["100"]
    assert {name for name in read.pictures() if "rouge" in name} == {
        "rouge csl rouge 1 over steps", "rouge lcsts rouge 1 over steps"}


def test_values_that_are_no_numbers_are_gaps(tmp_path: Path) -> None:
    """A NaN in the log, written as a string, that ends the report, moves the curve or is called the best."""
    folder = make_run(tmp_path / "run", [4.0, math.nan, math.inf, 3.0, 2.0],
                      {10: {"loss": math.nan, "accuracy": 0.5}, 20: {"loss": 3.5, "accuracy": 0.25},
                       30: {"loss": math.nan, "accuracy": math.nan}})
    read = page(folder)
    assert read.row("validation loss, last") == ["nan (step 30)"]
    assert read.row("validation loss, best") == ["3.5000 (step 20)"]
    assert read.row("validation accuracy, best") == ["0.5000 (step 10)"]
    corners = vertices(read.pictures()["train loss over steps"], 1)
    assert len(corners) == 3 and np.isfinite(corners).all()
    all_bad = make_run(tmp_path / "bad", [math.nan] * 3, {10: {"loss": math.nan}})
    read = page(all_bad)
    assert not read.images and read.row("validation loss, last") == ["nan (step 10)"]


def test_a_long_curve_is_a_line_and_a_single_point_is_seen(tmp_path: Path) -> None:
    """A run with one evaluation that is invisible; a thousand markers that hide the line."""
    long = [(step, math.sin(step / 3)) for step in range(MARKED_POINTS + 1)]
    picture = ET.fromstring(draw([long, [(5, 0.5)], []], "score"))
    groups = {group.get("id"): group for group in picture.iter(f"{SVG}g")}
    assert "run-3" not in groups
    assert len(list(groups["run-1"].iter(f"{SVG}use"))) == 0 and len(vertices(picture, 1)) == len(long)
    assert len(list(groups["run-2"].iter(f"{SVG}use"))) == 1
