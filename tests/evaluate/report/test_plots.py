"""The curves of the report are at the right coordinates."""

import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from common.files import write_json
from evaluate.report.page import select_pictured_keys
from evaluate.report.plots import (
    MAX_MARKED_POINTS,
    plot_curves,
    plot_heat_map,
    plot_intervals,
)
from evaluate.report.write import write_report
from tests.helpers.reports import SVG_NAMESPACE, line_vertices, render_report, write_run
from train.monitoring.metrics_log import MetricsLog


@pytest.mark.slow
def test_curves_plot_logged_values(tmp_path: Path) -> None:
    """Prevents empty axes, a curve of another metric, different scales in one picture."""
    drawn = {1: [9.0, 5.0, 7.5, 3.0, 1.0], 2: [8.0, 6.5, 2.0]}
    folders = [
        write_run(
            tmp_path / str(run),
            losses,
            {
                step * 10: {"loss": loss / 2, "rouge_l": 1 / loss, "tokens": 5}
                for step, loss in enumerate(losses, 1)
            },
        )
        for run, losses in drawn.items()
    ]
    svgs = render_report(*folders).svgs_by_alt()
    assert list(svgs) == [
        "train loss over steps",
        "validation loss over steps",
        "validation rouge l over steps",
    ]
    scores = (lambda loss: loss, lambda loss: loss / 2, lambda loss: 1 / loss)
    for picture, score in zip(svgs.values(), scores, strict=True):
        points = {
            run: np.array([[10 * step, score(loss)] for step, loss in enumerate(losses, 1)])
            for run, losses in drawn.items()
        }
        corners = {run: line_vertices(picture, run) for run in drawn}
        assert [len(corners[run]) for run in drawn] == [5, 3]
        for axis in (0, 1):
            # The scale of the axes comes from the first run and must hold for all.
            slope, offset = np.polyfit(points[1][:, axis], corners[1][:, axis], 1)
            assert slope > 0 if axis == 0 else slope < 0  # An SVG's y points down.
            for run in drawn:
                np.testing.assert_allclose(
                    slope * points[run][:, axis] + offset, corners[run][:, axis], atol=1e-3
                )


@pytest.mark.slow
def test_each_dataset_has_its_own_curve(tmp_path: Path) -> None:
    """Prevents one curve through the scores of two datasets, and the best of the other set."""
    folder = write_run(tmp_path / "run", [3.0])
    log = MetricsLog(folder, 100)
    for step in (10, 20):
        for name, score in (("csl", 0.25), ("lcsts", 0.5)):
            log.write("rouge", step, rouge_1=score * step / 20, examples=100, set=name)
    log.close()
    read = render_report(folder)
    assert read.find_row("rouge csl rouge 1, best") == ["0.2500 (step 20)"]
    assert read.find_row("rouge lcsts rouge 1, best") == ["0.5000 (step 20)"] and read.find_row(
        "rouge csl examples"
    ) == ["100"]
    assert {name for name in read.svgs_by_alt() if "rouge" in name} == {
        "rouge csl rouge 1 over steps",
        "rouge lcsts rouge 1 over steps",
    }


@pytest.mark.slow
def test_a_set_with_a_long_name_has_its_curves(tmp_path: Path) -> None:
    """Prevents a picture that cannot be written, as its name is too long for the file system."""
    folder = write_run(tmp_path / "run", [3.0])
    name = (
        f"headlines(news.jsonl,{','.join(f'downloads/test-{number}.tsv' for number in range(30))})"
    )
    log = MetricsLog(folder, 100)
    for step in (10, 20):
        log.write("rouge", step, rouge_1=0.25, rouge_2=0.125, set=name)
    log.close()
    write_report([folder], tmp_path / "report")
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    for picture in ("1", "2"):
        [file] = re.findall(rf"rouge {picture} over steps\]\(([^)]+)\)", page)
        assert (tmp_path / file).is_file()


@pytest.mark.slow
def test_non_finite_values_are_plotted_as_gaps(tmp_path: Path) -> None:
    """Prevents NaN in the log from stopping the report, moving the curve or being the best."""
    folder = write_run(
        tmp_path / "run",
        [4.0, math.nan, math.inf, 3.0, 2.0],
        {
            10: {"loss": math.nan, "accuracy": 0.5},
            20: {"loss": 3.5, "accuracy": 0.25},
            30: {"loss": math.nan, "accuracy": math.nan},
        },
    )
    read = render_report(folder)
    assert read.find_row("validation loss, last") == ["nan (step 30)"]
    assert read.find_row("validation loss, best") == ["3.5000 (step 20)"]
    assert read.find_row("validation accuracy, best") == ["0.5000 (step 10)"]
    corners = line_vertices(read.svgs_by_alt()["train loss over steps"], 1)
    assert len(corners) == 3 and np.isfinite(corners).all()
    all_bad = write_run(tmp_path / "bad", [math.nan] * 3, {10: {"loss": math.nan}})
    read = render_report(all_bad)
    assert not read.images and read.find_row("validation loss, last") == ["nan (step 10)"]


@pytest.mark.slow
def test_long_curves_are_lines_and_single_points_are_markers(tmp_path: Path) -> None:
    """Prevents an invisible single point, and markers that hide a long line."""
    long = [(step, math.sin(step / 3)) for step in range(MAX_MARKED_POINTS + 1)]
    picture = ET.fromstring(plot_curves([long, [(5, 0.5)], []], "score"))
    groups = {group.get("id"): group for group in picture.iter(f"{SVG_NAMESPACE}g")}
    assert "run-3" not in groups
    assert len(list(groups["run-1"].iter(f"{SVG_NAMESPACE}use"))) == 0 and len(
        line_vertices(picture, 1)
    ) == len(long)
    assert len(list(groups["run-2"].iter(f"{SVG_NAMESPACE}use"))) == 1


@pytest.mark.slow
def test_figures_with_intervals_are_drawn(two: tuple[Path, Path]) -> None:
    """Prevents a picture without a run, of another figure, or of figures without interval."""
    rate = {"rate": 0.5, "low": 0.25, "high": 0.75, "questions": 12}
    mean = {"mean": 0.75, "low": 0.5, "high": 1.0}
    write_json(two[0] / "results/choice.json", {"规则": {"a": rate, "b": mean}, "n": 3})
    write_json(two[1] / "results/choice.json", {"规则": {"b": {**mean, "high": "nan"}, "a": rate}})
    write_json(two[1] / "results/plain.json", {"loss": 2.5, "broken": {**mean, "low": "x"}})
    report = render_report(*two)
    pictures = {alt: picture for alt, picture in report.svgs_by_alt().items() if "intervals" in alt}
    assert list(pictures) == ["choice: figures with their 95 % intervals"]
    (table,) = [table for table in report.tables if "规则.a" in [row[0] for row in table]]
    assert ["规则.a", *["0.5000 (0.2500 – 0.7500) of 12"] * 2] in table
    (picture,) = pictures.values()
    groups = {element.get("id") for element in picture.iter(f"{SVG_NAMESPACE}g")}
    assert {"run-1", "run-2"} <= groups


def test_pictures_of_large_results_have_the_main_figures() -> None:
    """Prevents a picture whose sixty rows end before the figures that the measure is about."""
    keys = ["all.with.right", "all.with.rule_use", "all.with.common_sense", "x.answered"]
    assert select_pictured_keys("rules", keys) == keys[:2]
    assert select_pictured_keys("rules-set", keys) == keys[:2]
    assert select_pictured_keys("rulesets", keys) == keys
    dialogue = ["conditions.a.rouge.stripped.rouge-1", "conditions.a.rouge.whole.rouge-1"]
    assert select_pictured_keys("rouge-dialogue", dialogue) == dialogue[:1]
    assert select_pictured_keys("rouge", dialogue) == dialogue
    needles = ["likelihood.by_length.256.right", "likelihood.by_length.256.answered"]
    assert select_pictured_keys("needle", needles) == needles[:1]
    pasts = ["by_past.64.loss", "by_past.128.gain", "by_position.1-15"]
    assert select_pictured_keys("long-text", pasts) == pasts[:1]


def test_intervals_stand_at_their_values() -> None:
    """Prevents a point on the row of another figure, or bars that begin at zero."""
    svg = plot_intervals(["a", "b"], [[(0.0, 0.0, 0.5), (1.0, 0.5, 1.0)]])
    root = ET.fromstring(svg)
    uses = [
        (float(use.get("x", "nan")), float(use.get("y", "nan")))
        for group in root.iter(f"{SVG_NAMESPACE}g")
        if group.get("id") == "run-1"
        for use in group.iter(f"{SVG_NAMESPACE}use")
    ]
    assert len(uses) >= 2
    (x_a, y_a), (x_b, y_b) = uses[-2:]
    assert x_a < x_b and y_a < y_b
    assert svg == plot_intervals(["a", "b"], [[(0.0, 0.0, 0.5), (1.0, 0.5, 1.0)]])


@pytest.mark.slow
def test_heat_maps_have_every_cell_at_its_place() -> None:
    """Prevents a heat map that is upside down, and pictures that differ from run to run."""
    rates = [[0.0, 0.25, 1.0], [0.5, 0.75, 0.1]]
    labels = ["0–50 %", "50–100 %"], ["256", "512", "1,024"]
    picture = plot_heat_map(rates, *labels, "place", "tokens")
    assert picture == plot_heat_map(rates, *labels, "place", "tokens")
    assert picture != plot_heat_map(rates[::-1], *labels, "place", "tokens")
    assert len(ET.fromstring(picture).findall(f".//{SVG_NAMESPACE}image")) >= 1
