"""The report shows all of a run: identity, metrics, options, results and samples."""

import json
from pathlib import Path

import pytest

from common.files import write_json
from evaluate.report import page
from evaluate.report.render import MISSING
from tests.helpers.reports import MODEL_CONFIG, VALIDATION_METRICS, render_report, write_run
from train.monitoring.metrics_log import MetricsLog


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take nearly all of the time and are tested by themselves."""
    monkeypatch.setattr(page, "plot_curves", lambda curves, label: b"<svg/>")


@pytest.mark.slow
def test_report_describes_each_run(two: tuple[Path, Path]) -> None:
    """Prevents scores without the data, model and command of the run."""
    read = render_report(*two)
    environment = json.loads((two[0] / "run.json").read_text())["made"]
    assert read.tables[0][0] == ["run", f"1 · {two[0]}", f"2 · {two[1]}"]
    assert environment["command"] and read.find_row("command") == [environment["command"]] * 2
    assert read.find_row("commit") == [environment["commit"] or MISSING] * 2
    assert read.find_row("data") == ["sample · dddddddddddd"] * 2
    assert read.find_row("tokenizer") == ["100 pieces · eeeeeeeeeeee"] * 2
    assert read.find_row("parameters") == [f"{MODEL_CONFIG.num_parameters:,} · babyllama-3m"] * 2
    assert read.find_row("steps") == ["40 of 100 · 3,000 tokens", "20 of 20 · 2,000 tokens"]
    assert (
        read.find_row("device") == ["cpu", "cpu"]
        and read.find_row("seed") == ["7", "7"]
        and read.find_row("base") == [MISSING] * 2
    )


def test_report_names_base_of_fine_tuned_run(two: tuple[Path, Path]) -> None:
    """Prevents an unused preset as the shape of a fine-tuned run, or no shape at all."""
    write_json(two[0] / "run.json", {"fingerprints": {"base": "f" * 64}})
    (two[0] / "config.yaml").write_text(
        "base: runs/x\nmodel: {preset: babyllama-43m}\nepochs: 3\nmax_steps: null\n"
    )
    write_json(two[0] / "checkpoints" / "step-00000040" / "config.json", MODEL_CONFIG.to_hf())
    read = render_report(*two)
    assert read.find_row("base", "run") == ["runs/x · ffffffffffff", MISSING]
    assert (
        read.find_row("parameters")[0] == f"{MODEL_CONFIG.num_parameters:,}"
        and read.find_row("tokenizer", "run")[0] == "100 pieces"
    )
    assert read.find_row("steps")[0] == "40 (3 epochs planned) · 3,000 tokens"


def test_report_shows_last_and_best_metrics(two: tuple[Path, Path]) -> None:
    """Prevents a wrong direction of best, the last value as the best, and a best count."""
    with_final = MetricsLog(
        two[1], 21
    )  # of step 20 itself an evaluation without its end would be dropped
    with_final.write("final", 20, loss=2.6, tokens=5000)
    with_final.close()
    read = render_report(*two)
    assert read.find_row("train loss, last") == ["3.0000 (step 30)", "2.0000 (step 20)"]
    assert read.find_row("validation loss, last") == ["2.7500 (step 40)", "2.5000 (step 20)"]
    assert read.find_row("validation loss, best")[0] == "2.2500 (step 30)"
    assert read.find_row("validation accuracy, best")[0] == "0.4000 (step 20)"
    assert read.find_row("validation bits per character, best")[0] == "1.9000 (step 20)"
    assert read.find_row("validation tokens") == ["999", "999"]
    assert read.find_row("final loss") == [MISSING, "2.6000 (step 20)"]


@pytest.mark.slow
def test_empty_rows_are_omitted(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Prevents empty rows for a final evaluation that no run has."""
    (young := tmp_path / "young").mkdir()
    (young / "config.yaml").write_text("seed: 1\n")
    assert not any(
        row[0].startswith("final") for table in render_report(*two).tables for row in table
    )
    assert not any(set(row[1:]) == {MISSING} for row in render_report(*two).tables[2])
    assert not any("loss" in row[0] for table in render_report(young).tables for row in table)


@pytest.mark.slow
def test_report_names_evaluated_data(two: tuple[Path, Path], tmp_path: Path) -> None:
    """Prevents wrong descriptions of the scored part of a split."""
    tuned, capped = (
        write_run(tmp_path / name, [3.0], {20: VALIDATION_METRICS}) for name in ("tuned", "capped")
    )
    for folder, evaluation in (
        (tuned, "{examples: 100}"),
        (capped, "{examples: 20, scored: 1000}"),
    ):
        (folder / "config.yaml").write_text(f"base: runs/x\nevaluation: {evaluation}\n")
        log = MetricsLog(folder, 21)
        log.write("final", 20, **VALIDATION_METRICS)
        log.write("rouge", 20, rouge_1=0.5, set="csl")
        log.close()
    read = render_report(two[0], tuned, capped)
    assert read.find_row("validation, measured on") == [
        "held-out text: the first 200,000 tokens at most",
        "answers of the dev split: all",
        "answers of the dev split: the first 1,000 examples of each set at most",
    ]
    assert read.find_row("final, measured on") == [MISSING, *["answers of the dev split: all"] * 2]
    assert read.find_row("rouge csl, measured on") == [
        MISSING,
        *(f"greedy answers to the first {count} records of the dev split" for count in (100, 20)),
    ]


@pytest.mark.slow
def test_only_options_that_differ_are_listed(tmp_path: Path) -> None:
    """Prevents equal options in the table, and a missing option that counts as equal."""
    first, same = (write_run(tmp_path / name, [], optimizer={"lr": 0.25}) for name in ("a", "c"))
    second = write_run(tmp_path / "b", [], max_steps=20, optimizer={"lr": 0.5})
    (table,) = [table for table in render_report(first, second).tables if table[0][0] == "option"]
    assert sorted(table[1:]) == [["max_steps", "100", "20"], ["optimizer.lr", "0.25", "0.5"]]
    (second / "config.yaml").write_text("max_steps: 100\nseed: 7\nnew: null\n")
    (table,) = [table for table in render_report(first, second).tables if table[0][0] == "option"]
    shown = {row[0]: row[1:] for row in table[1:]}
    assert shown["new"] == [MISSING, "null"] and shown["optimizer.lr"] == ["0.25", MISSING]
    assert "max_steps" not in shown and "seed" not in shown
    assert "The options are the same." in render_report(first, same).text


def test_results_are_shown_with_their_commands(two: tuple[Path, Path]) -> None:
    """Prevents results without their command, and results files that are left out."""
    write_json(
        two[0] / "results" / "rouge.json",
        {
            "checkpoint": "runs/a",
            "characters": {"rouge-l": {"f": {"mean": 0.584321, "low": 0.55, "high": 0.61}}},
            "examples": 1200,
            "greedy": True,
            "worst": [{"prediction": "坏"}],
            "nothing": None,
            "odd": "nan",
            "made": {
                "command": "rouge.py --checkpoint runs/a --limit 5",
                "commit": "abc1234",
                "versions": {"torch": "2"},
            },
        },
    )
    write_json(
        two[1] / "results" / "rouge.json",
        {
            "characters": {"rouge-l": {"f": {"mean": 0.25, "low": 0.2, "high": 1.0}}},
            "made": {"command": "rouge.py b"},
        },
    )
    write_json(two[1] / "results" / "repetition.json", {"repeated_4grams": 0.0123})
    read = render_report(*two)
    first, second = (table for table in read.tables if table[0][0] == "result")
    assert [row[0] for row in first] == ["result", "command", "commit", "repeated_4grams"]
    assert first[1][1:] == [MISSING, MISSING] and first[3][1:] == [MISSING, "0.0123"]
    assert second[1:] == [
        ["command", "rouge.py --checkpoint runs/a --limit 5", "rouge.py b"],
        ["commit", "abc1234", MISSING],
        ["checkpoint", "runs/a", MISSING],
        ["characters.rouge-l.f", "0.5843 (0.5500 – 0.6100)", "0.2500 (0.2000 – 1.0000)"],
        ["examples", "1,200", MISSING],
        ["greedy", "yes", MISSING],
        ["odd", "nan", MISSING],
    ]


def test_samples_are_shown_side_by_side(two: tuple[Path, Path]) -> None:
    """Prevents old samples, and answers to different prompts in one row."""
    for folder, texts in zip(two, (["旧", "新的\n两行 | 竖线"], ["别的"]), strict=True):
        log = MetricsLog(folder, 100)
        for step, text in enumerate(texts, 41):
            log.write("sample", step, prompt="问：", text=text)
        log.write("sample", 50, prompt="", text="开头")
        log.close()
    read = render_report(*two)
    assert read.find_row("问：") == ["新的\n两行 | 竖线\n(step 42)", "别的\n(step 41)"]
    assert read.find_row("(empty prompt)") == ["开头\n(step 50)"] * 2
