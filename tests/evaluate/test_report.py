"""The report shows what lies in the runs, all of it, in both forms, and nothing in them can break it."""

import base64
import json
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import markdown_it
import numpy as np
import pytest
import torch

from common.errors import UserError
from common.files import write_json
from evaluate.curves import MARKED_POINTS, draw
from evaluate.page import MISSING, to_html, to_markdown
from evaluate.report import TITLE, main, report
from evaluate.run_record import read_run, show
from model.config import LlamaConfig
from train.metrics import MetricsLog
from train.options import PretrainOptions
from train.run import Run

SVG = "{http://www.w3.org/2000/svg}"
SHAPE = LlamaConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=4)
VOID = {"meta", "br", "img"}


class Reader(HTMLParser):
    """Tags in order, every table as rows of cell texts, images; fails on tags that do not close as they opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.images: list[dict[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not any(name.startswith("on") for name, _ in attrs)
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        elif tag == "br":
            self.handle_data("\n")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def row(self, name: str, *heads: str) -> list[str]:
        """The cells of the only row of that name, in the tables that are headed so, or in all."""
        (found,) = [row[1:] for table in self.tables for row in table[1:]
                    if row[0] == name and (not heads or table[0][0] in heads)]
        return found

    def pictures(self) -> dict[str, ET.Element]:
        """What the pictures inside the page show → the picture."""
        return {image["alt"]: ET.fromstring(base64.b64decode(image["src"].partition(",")[2])) for image in self.images}


def make_run(folder: Path, losses: list[float], validation: dict[int, dict[str, Any]] | None = None, **options: Any) -> Path:
    """A run as training writes one, without the training."""
    chosen = PretrainOptions.model_validate({"run": folder, "max_steps": 100, "seed": 7, **options})
    run = Run(folder)
    fingerprints = {"data": [{"set": "d" * 64, "weight": 1.0}], "tokenizer": "e" * 64, "model": SHAPE.to_hf(), "seed": 7}
    run.open(chosen.model_dump(mode="json"), fingerprints, [], torch.device("cpu"))
    log = MetricsLog(folder, 0)
    for index, loss in enumerate(losses, 1):
        log.write("train", index * 10, tokens=index * 1000, loss=loss)
    for step, values in (validation or {}).items():
        log.write("validation", step, **values)
    log.close()
    return folder


def page(*folders: Path) -> Reader:
    return Reader(to_html(TITLE, report([read_run(folder) for folder in folders], "x")))


def vertices(picture: ET.Element, run: int) -> np.ndarray:
    """The corners of a run's line in the picture's units, float64[n, 2]."""
    (group,) = [group for group in picture.iter(f"{SVG}g") if group.get("id") == f"run-{run}"]
    # The first path is the line; the next is the legend-less marker's shape.
    line = next(group.iter(f"{SVG}path"))
    return np.array([[float(x), float(y)] for x, y in re.findall(r"[ML] (\S+) (\S+)", line.get("d") or "")])


MEASURES = {"loss": 2.5, "perplexity": 12.2, "accuracy": 0.4, "bits_per_character": 1.9, "tokens": 999}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    first = make_run(tmp_path / "a", [5.0, 4.0, 3.0], {
        20: MEASURES, 30: {**MEASURES, "loss": 2.25, "accuracy": 0.35}, 40: {**MEASURES, "loss": 2.75, "accuracy": 0.3},
    }, optimizer={"lr": 0.25})
    second = make_run(tmp_path / "b", [6.0, 2.0], {20: MEASURES}, max_steps=20, optimizer={"lr": 0.5})
    return first, second


def test_each_run_says_what_it_is(two: tuple[Path, Path]) -> None:
    """A table of scores of which nobody knows what was trained, on what, with what."""
    read = page(*two)
    made = json.loads((two[0] / "run.json").read_text())["made"]
    assert read.tables[0][0] == ["run", f"1 · {two[0]}", f"2 · {two[1]}"]
    assert made["command"] and read.row("command") == [made["command"]] * 2
    assert read.row("commit") == [made["commit"] or MISSING] * 2
    assert read.row("data") == ["sample · dddddddddddd"] * 2
    assert read.row("tokenizer") == ["100 pieces · eeeeeeeeeeee"] * 2
    assert read.row("parameters") == [f"{SHAPE.parameters:,} · babyllama-43m"] * 2
    assert read.row("steps") == ["40 of 100 · 3,000 tokens", "20 of 20 · 2,000 tokens"]
    assert read.row("device") == ["cpu", "cpu"] and read.row("seed") == ["7", "7"] and read.row("base") == [MISSING] * 2


def test_a_fine_tuned_run_says_what_it_began_with(two: tuple[Path, Path]) -> None:
    """A preset that was never used shown as the shape; the base's shape, of which run.json says nothing, not found."""
    write_json(two[0] / "run.json", {"fingerprints": {"base": "f" * 64}})
    (two[0] / "config.yaml").write_text("base: runs/x\nmodel: {preset: babyllama-43m}\nepochs: 3\nmax_steps: null\n")
    write_json(two[0] / "checkpoints" / "step-00000040" / "config.json", SHAPE.to_hf())
    read = page(*two)
    assert read.row("base", "run") == ["runs/x · ffffffffffff", MISSING]
    assert read.row("parameters")[0] == f"{SHAPE.parameters:,}" and read.row("tokenizer", "run")[0] == "100 pieces"
    assert read.row("steps")[0] == "40 of 3 epochs · 3,000 tokens"


def test_last_and_best_figures(two: tuple[Path, Path]) -> None:
    """The highest loss or the lowest accuracy called best; the last taken for the best; a count ranked."""
    with_final = MetricsLog(two[1], 21)  # of step 20 itself an evaluation without its end would be dropped
    with_final.write("final", 20, loss=2.6, tokens=5000)
    with_final.close()
    read = page(*two)
    assert read.row("train loss, last") == ["3.0000 (step 30)", "2.0000 (step 20)"]
    assert read.row("validation loss, last") == ["2.7500 (step 40)", "2.5000 (step 20)"]
    assert read.row("validation loss, best")[0] == "2.2500 (step 30)"
    assert read.row("validation accuracy, best")[0] == "0.4000 (step 20)"
    assert read.row("validation bits per character, best")[0] == "1.9000 (step 20)"
    assert read.row("validation tokens") == ["999", "999"]
    assert read.row("final loss") == [MISSING, "2.6000 (step 20)"]


def test_a_row_that_no_run_has_is_left_out(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Four lines of dashes for a final evaluation that no run has had."""
    (young := tmp_path / "young").mkdir()
    (young / "config.yaml").write_text("seed: 1\n")
    assert not any(row[0].startswith("final") for table in page(*two).tables for row in table)
    assert not any(set(row[1:]) == {MISSING} for row in page(*two).tables[2])
    assert not any("loss" in row[0] for table in page(young).tables for row in table)


def test_it_is_said_what_was_measured(two: tuple[Path, Path], tmp_path: Path) -> None:
    """The whole dev split of a fine-tuned run called its beginning; scores of a hundred answers taken for those of all."""
    tuned, capped = (make_run(tmp_path / name, [3.0], {20: MEASURES}) for name in ("tuned", "capped"))
    for folder, evaluation in ((tuned, "{examples: 100}"), (capped, "{examples: 20, scored: 1000}")):
        (folder / "config.yaml").write_text(f"base: runs/x\nevaluation: {evaluation}\n")
        log = MetricsLog(folder, 21)
        log.write("final", 20, **MEASURES)
        log.write("rouge", 20, rouge_1=0.5, set="csl")
        log.close()
    read = page(two[0], tuned, capped)
    assert read.row("validation, measured on") == [
        "held-out text: the first 200,000 tokens at most", "answers of the dev split: all",
        "answers of the dev split: the first 1,000 examples of each set at most"]
    assert read.row("final, measured on") == [MISSING, *["answers of the dev split: all"] * 2]
    assert read.row("rouge csl, measured on") == [
        MISSING, *(f"greedy answers to the first {count} records of the dev split" for count in (100, 20))]


def test_only_options_that_differ_are_listed(tmp_path: Path) -> None:
    """The one changed option lost among forty equal ones; an option that one run lacks counted as equal."""
    first, same = (make_run(tmp_path / name, [], optimizer={"lr": 0.25}) for name in ("a", "c"))
    second = make_run(tmp_path / "b", [], max_steps=20, optimizer={"lr": 0.5})
    (table,) = [table for table in page(first, second).tables if table[0][0] == "option"]
    assert sorted(table[1:]) == [["max_steps", "100", "20"], ["optimizer.lr", "0.25", "0.5"]]
    (second / "config.yaml").write_text("max_steps: 100\nseed: 7\nnew: null\n")
    (table,) = [table for table in page(first, second).tables if table[0][0] == "option"]
    shown = {row[0]: row[1:] for row in table[1:]}
    assert shown["new"] == [MISSING, "null"] and shown["optimizer.lr"] == ["0.25", MISSING]
    assert "max_steps" not in shown and "seed" not in shown
    assert "The options are the same." in page(first, same).text


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


def test_results_are_shown_with_their_commands(two: tuple[Path, Path]) -> None:
    """A figure without the command that gives it again; an evaluation the report was not told of left out."""
    write_json(two[0] / "results" / "rouge.json", {
        "checkpoint": "runs/a", "characters": {"rouge-l": {"f": {"mean": 0.584321, "low": 0.55, "high": 0.61}}},
        "examples": 1200, "greedy": True, "worst": [{"prediction": "坏"}], "nothing": None, "odd": "nan",
        "made": {"command": "rouge.py --checkpoint runs/a --limit 5", "commit": "abc1234", "versions": {"torch": "2"}}})
    write_json(two[1] / "results" / "rouge.json", {
        "characters": {"rouge-l": {"f": {"mean": 0.25, "low": 0.2, "high": 1.0}}}, "made": {"command": "rouge.py b"}})
    write_json(two[1] / "results" / "repetition.json", {"repeated_4grams": 0.0123})
    read = page(*two)
    first, second = (table for table in read.tables if table[0][0] == "figure")
    assert [row[0] for row in first] == ["figure", "command", "commit", "repeated_4grams"]
    assert first[1][1:] == [MISSING, MISSING] and first[3][1:] == [MISSING, "0.0123"]
    assert second[1:] == [
        ["command", "rouge.py --checkpoint runs/a --limit 5", "rouge.py b"], ["commit", "abc1234", MISSING],
        ["checkpoint", "runs/a", MISSING], 
        ["characters.rouge-l.f", "0.5843 (0.5500 – 0.6100)", "0.2500 (0.2000 – 1.0000)"], ["examples", "1,200", MISSING],
        ["greedy", "yes", MISSING], ["odd", "nan", MISSING],
    ]


@pytest.mark.parametrize(("value", "text"), [
    (0.0, "0.0000"), (0.58432, "0.5843"), (-2.5, "-2.5000"), (1234567, "1,234,567"), (68293.56, "68,293.6"),
    (0.00001234, "1.234e-05"), (False, "no"), (math.inf, "inf"), ([0.5, 2], "[0.5000, 2]"),
    ([1, 2, 3, 4, 5], None), (["a"], None), ([], None), (None, None), ({}, None),
])
def test_figures_are_readable(value: Any, text: str | None) -> None:
    """A small rate rounded to 0.0000, a whole list of examples in a cell."""
    assert show(value) == text


def test_samples_stand_side_by_side(two: tuple[Path, Path]) -> None:
    """An old sample shown for the newest; two runs' answers to different prompts in one row."""
    for folder, texts in zip(two, (["旧", "新的\n两行 | 竖线"], ["别的"]), strict=True):
        log = MetricsLog(folder, 100)
        for step, text in enumerate(texts, 41):
            log.write("sample", step, prompt="问：", text=text)
        log.write("sample", 50, prompt="", text="开头")
        log.close()
    read = page(*two)
    assert read.row("问：") == ["新的\n两行 | 竖线\n(step 42)", "别的\n(step 41)"]
    assert read.row("(nothing)") == ["开头\n(step 50)"] * 2


HOSTILE = "<script>alert(1)</script> | `x` **b** [l](http://e.x) ![i](u) &lt; <!-- $x$ \\ ~~s~~ \"q\" 'q' # h"


def test_nothing_in_a_run_has_an_effect_on_the_page(tmp_path: Path) -> None:
    """A run's name, command, prompt or sample that runs a script, loads a picture or breaks the table."""
    folder = make_run(tmp_path / HOSTILE.replace("/", "⁄"), [3.0, 2.0], {10: {"loss": 2.0, HOSTILE: 0.5, "中文": 0.5}})
    made = json.loads((folder / "run.json").read_text())
    made["made"]["command"] = HOSTILE
    write_json(folder / "run.json", made)
    write_json(folder / "results" / f"{HOSTILE.replace('/', '⁄')}.json", {HOSTILE: HOSTILE})
    (folder / "config.yaml").write_text(json.dumps({HOSTILE: HOSTILE}))
    log = MetricsLog(folder, 100)
    log.write("sample", 20, prompt=HOSTILE, text=HOSTILE)
    log.close()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"kind": "sample", "step": 30, "prompt": "odd", "text": "a\r\n\ud800\x00\x1b[31m\u2028b"}) + "\n")
    plain = make_run(tmp_path / "plain", [1.0])
    blocks = report([read_run(folder), read_run(plain)], "x")
    read = Reader(to_html(HOSTILE, blocks))
    assert set(read.tags) <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "div", "table",
                              "thead", "tbody", "tr", "th", "td", "code", "img"}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in read.images) and len(read.images) == 4
    assert read.row("command", "run")[0] == HOSTILE
    assert read.row("odd")[0] == "a\n?\ufffd\ufffd[31m\u2028b\n(step 30)"
    named = {table[0][0]: row for table in read.tables for row in table[1:] if row[0] == HOSTILE}
    assert named == {"option": [HOSTILE, HOSTILE, MISSING], "figure": [HOSTILE, HOSTILE, MISSING],
                     "prompt": [HOSTILE, f"{HOSTILE}\n(step 20)", MISSING]}


def test_both_forms_hold_the_same(tmp_path: Path) -> None:
    """Markdown that an independent reader sees other cells in, because a `|`, a line end or a mark was not escaped."""
    folder = make_run(tmp_path / HOSTILE.replace("/", "⁄"), [3.0, 2.0], {10: {"loss": 2.0}}, data=HOSTILE)
    write_json(folder / "results" / "x.json", {"text": HOSTILE, "made": {"command": HOSTILE}})
    log = MetricsLog(folder, 100)
    log.write("sample", 20, prompt="# " + HOSTILE, text="```\n- a\n\n    code\n| --- |\n" + HOSTILE)
    log.close()
    blocks = report([read_run(folder), read_run(make_run(tmp_path / "plain", [1.0]))], "x")
    reader = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    from_markdown, from_html = Reader(reader.render(to_markdown(blocks))), Reader(to_html(TITLE, blocks))

    def cells(read: Reader) -> list[list[list[str]]]:
        # A Markdown cell has no white space at its ends.
        return [[["\n".join(cell.split("\n")).strip() for cell in row] for row in table] for table in read.tables]

    assert cells(from_markdown) == cells(from_html) and len(from_html.tables) >= 4
    assert [image["alt"] for image in from_markdown.images] == [image["alt"] for image in from_html.images]
    assert set(from_markdown.tags) <= {"h1", "h2", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "img", "br"}


@pytest.mark.parametrize("missing", ["run.json", "config.yaml", "metrics.jsonl"])
def test_a_missing_file_is_shown_as_missing(two: tuple[Path, Path], missing: str) -> None:
    """A young or an old run, without one of its files, that keeps all the others from being compared."""
    (two[0] / missing).unlink()
    read = page(*two)
    row = {"run.json": "command", "config.yaml": "seed", "metrics.jsonl": "validation loss, last"}[missing]
    assert read.row(row)[0] == MISSING != read.row(row)[1]
    assert len(read.images) == 4
    if missing == "config.yaml":
        assert "there are no two config.yaml" in read.text


def command(*arguments: str, root: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "evaluate.report", *arguments], cwd=root, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_writes_both_pages_and_their_pictures(two: tuple[Path, Path], tmp_path: Path, root: Path) -> None:
    """A page that needs files it does not bring; other bytes from the same runs, which no diff could then be read from."""
    outs = [tmp_path / "x" / "报告 (1)", tmp_path / "again" / "报告 (1)"]
    for out in outs:
        done = command(*map(str, two), "--out", str(out), root=root)
        assert done.returncode == 0, done.stderr
        assert f"2 runs, 4 pictures: {out}.md  {out}.html" in done.stdout
    written = {path.name: path.read_bytes() for path in outs[0].parent.iterdir()}
    assert written == {path.name: path.read_bytes() for path in outs[1].parent.iterdir()}
    page = Reader(written["报告 (1).html"].decode())
    links = re.findall(r"!\[[^]]*\]\((\S*)\)\n", written["报告 (1).md"].decode())
    linked = [unquote(link) for link in links]
    assert set(written) == {"报告 (1).md", "报告 (1).html", *linked} and len(linked) == 4
    embedded = [base64.b64decode(image["src"].partition(",")[2]) for image in page.images]
    assert embedded == [written[name] for name in linked]
    assert not re.search(r"(src|href)=\"(?!data:)", written["报告 (1).html"].decode())


@pytest.mark.slow
def test_one_run_and_five(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A comparison that wants exactly two."""
    folders = [make_run(tmp_path / f"r{index}", [5.0 - index, 1.0], {20: MEASURES}) for index in range(5)]
    alone, all_five = page(folders[0]), page(*folders)
    assert all(len(row) == 2 for table in alone.tables for row in table) and "Options that differ" not in alone.text
    assert all(len(row) == 6 for table in all_five.tables for row in table)
    for picture in all_five.pictures().values():
        assert all(len(vertices(picture, run)) for run in range(1, 6))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report", "r0"])
    main()
    assert (tmp_path / "report.html").is_file() and "1 run," in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["report", "r0", "--out", "r1"])
    main()
    assert (tmp_path / "r1" / "report.md").is_file()


def test_mistakes_are_one_line_that_names_the_folder(
    two: tuple[Path, Path], tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback for a typing error."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    done = command(str(tmp_path / "empty"), root=root)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'empty'} is no run")
    with pytest.raises(UserError, match=f"{tmp_path / 'absent'} does not exist"):
        read_run(tmp_path / "absent")
    monkeypatch.setattr(sys, "argv", ["report", str(two[1]), "--out", str(tmp_path / "file" / "page")])
    with pytest.raises(UserError, match=f"--out {tmp_path / 'file' / 'page'}: cannot be written"):
        main()


@pytest.mark.parametrize(("file", "content", "words"), [
    ("results/rouge.json", "{", "cannot be read as JSON"), ("results/rouge.json", "[1]", "expected an object"),
    ("run.json", "7", "expected an object"), ("config.yaml", "a: [", "not readable as YAML"),
    ("metrics.jsonl", '{"kind": "train", "step": 1}\nnonsense\n', "line 2"),
    ("metrics.jsonl", '{"kind": "train"}\n', "line 1"), ("metrics.jsonl", "[]\n", "line 1"),
    ("run.json", '{"fingerprints": {"model": {"model_type": "gpt2"}}}', "only llama is supported"),
])
def test_a_damaged_file_is_named(two: tuple[Path, Path], file: str, content: str, words: str) -> None:
    """A figure silently left out because its file could not be read."""
    (two[0] / "results").mkdir(exist_ok=True)
    (two[0] / file).write_text(content)
    with pytest.raises(UserError, match=words) as error:
        page(*two)
    assert all(line.startswith(str(two[0])) for line in str(error.value).splitlines())


def test_a_run_in_progress_can_be_read(two: tuple[Path, Path]) -> None:
    """A line that training is just writing, taken for damage."""
    with (two[0] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert page(*two).row("steps")[0] == "40 of 100 · 3,000 tokens"
