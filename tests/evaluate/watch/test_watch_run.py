"""`python -m evaluate.watch`: checkpoints on one page, and only new ones are asked."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from common.files import check_manifest, write_checksummed_json, write_manifest
from common.run_layout import list_steps, step_folder
from evaluate.load_model import load_checkpoint
from evaluate.report.run_reader import read_run
from evaluate.watch import __main__ as watch
from evaluate.watch import checkpoint_answers, page
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer
from tests.helpers.passage_questions import (
    LOOP,
    PLACES,
    passage_lessons,
    question,
    save_looping_weights,
    write_passage_corpus,
)
from tests.helpers.reports import ReportParser, render_report
from tests.helpers.training import build_trainer, truncate_tokenizer, write_text_set
from train.monitoring.metrics_log import MetricsLog

Run = Callable[..., None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return conversations about passages in the format of RedGPT."""
    return write_passage_corpus(tmp_path_factory.mktemp("corpus") / "redgpt.jsonl")


@pytest.fixture(scope="module")
def trained_run(
    teach: Callable[..., Path], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Return a run with a falling loss, whose answers are nothing, then right, then loops."""
    run = tmp_path_factory.mktemp("watched") / "run"
    (run / "checkpoints").mkdir(parents=True)
    write_checksummed_json(run / "run.json", {"shards": [], "fingerprints": {"data": []}})
    teach(passage_lessons(tokenizer), step_folder(run, 20))
    for step in (10, 30):
        shutil.copytree(step_folder(run, 20), step_folder(run, step))
    model, _ = weights.load_checkpoint(step_folder(run, 20), torch.device("cpu"))
    weights.save_weights(model.init_weights(1), step_folder(run, 10))
    save_looping_weights(step_folder(run, 30), tokenizer)
    for step in (10, 20, 30):
        write_manifest(step_folder(run, step), {"step": step})
    log = MetricsLog(run, 0)
    for step, loss in ((10, 3.0), (20, 2.5), (30, 2.25)):
        log.write("validation", step, loss=loss)
    log.close()
    return run


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """Return a copy of the run."""
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures, which take nearly all of the time."""
    monkeypatch.setattr(page, "plot_curves", lambda *arguments: b"<svg/>")


@pytest.fixture
def watch_run(run_command: Run, run: Path, corpus: Path) -> Callable[..., dict[str, Any]]:
    """Watch the run on the corpus, on a CPU; return the contents of the results file."""

    def _watch(*arguments: object) -> dict[str, Any]:
        given = arguments or ("--source", "redgpt", "--input", corpus)
        run_command(watch, run, *given, "--device", "cpu", "--max_new_tokens", "24")
        results: dict[str, Any] = json.loads((run / "results" / "watch.json").read_text("utf-8"))
        return results

    return _watch


@pytest.fixture
def loaded_steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which the name of each checkpoint is added when it is loaded."""
    names: list[str] = []

    def load(folder: Path, *arguments: Any) -> Any:
        names.append(folder.name)
        return load_checkpoint(folder, *arguments)

    monkeypatch.setattr(checkpoint_answers, "load_checkpoint", load)
    return names


def read_page(run: Path) -> ReportParser:
    return ReportParser((run / "watch.html").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_page_shows_where_quality_turns_down(
    run: Path, watch_run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a falling loss that hides lost answers and loops, and answers of other steps."""
    results = watch_run()
    printed = capsys.readouterr().out
    shown = read_page(run)
    expected = (
        "quality turns down while the loss still falls. From step 20 to step 30, the rate of exact "
        "answers falls from 100.0 % to 0.0 %, by 100.0 points (",
        "quality turns down while the loss still falls. From step 20 to step 30, the rate of "
        "looping answers rises from 0.0 % to 100.0 %, by 100.0 points (",
        "over the same 12 questions, corrected for 6 comparisons), and the validation loss falls "
        "from 2.5000 to 2.2500.",
    )
    for sentence in expected:
        assert sentence in printed and sentence in shown.text
        assert sentence in results["conclusions"]
    assert shown.find_row("validation loss") == ["3.0000", "2.5000", "2.2500", "—"]
    exact = shown.find_row("exact answers")
    assert exact[1:3] == ["100.0 % (75.8 – 100.0)", "0.0 % (0.0 – 24.2)"]
    assert exact[3] == "8.3 % (most frequent answer)"
    assert shown.find_row("looping answers")[2] == "100.0 % (75.8 – 100.0)"
    for number, place in enumerate(PLACES):
        cells = shown.find_row(question(number))
        assert [cells[0], *cells[2:]] == [place, place, f"{LOOP}\n(loops)"]
    assert list(shown.svgs_by_alt()) == [
        "validation loss over steps",
        "exact answers over steps",
        "looping answers over steps",
        "answers ended by <eos> over steps",
        "characters per answer over steps",
    ]
    assert {path.suffix for path in run.glob("watch*")} == {".md", ".html", ".svg"}
    assert not list((run / "results").glob("*.partial"))
    # The report of the run shows the conclusion, and not every answer.
    report_rows = read_run(run).results["watch"]
    assert "turns down" in report_rows["conclusions"]
    table = next(table for table in render_report(run).tables if table[0][0] == "result")
    assert not any("steps" in row[0] or "sets" in row[0] for row in table)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_only_new_checkpoints_are_asked(
    run: Path,
    watch_run: Callable[..., dict[str, Any]],
    loaded_steps: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents hours of answers that are known, and answers of weights that were replaced."""
    hidden = run / "step-00000030"
    step_folder(run, 30).rename(hidden)
    first = watch_run()
    assert loaded_steps == ["step-00000010", "step-00000020"]
    hidden.rename(step_folder(run, 30))
    loaded_steps.clear()
    second = watch_run()
    assert loaded_steps == ["step-00000030"]
    assert second["steps"][:2] == first["steps"]
    # A step that was deleted stays on the page; the same weights under another step are known; and
    # other weights are not.
    shutil.rmtree(step_folder(run, 10))
    shutil.copytree(step_folder(run, 20), step_folder(run, 40))
    shutil.rmtree(step_folder(run, 30))
    shutil.copytree(step_folder(run, 20), step_folder(run, 30))
    loaded_steps.clear()
    third = watch_run()
    assert loaded_steps == [] and [entry["step"] for entry in third["steps"]] == [10, 20, 30, 40]
    answers = [entry["answers"] for entry in third["steps"]]
    assert answers[1] == answers[2] == answers[3] != answers[0] == second["steps"][0]["answers"]
    assert read_page(run).tables[0][0][1:3] == ["step 10 (deleted)", "step 20"]
    # Other options ask again.
    capsys.readouterr()
    watch_run("--questions", write_questions(run))
    assert "other questions or options: all checkpoints are asked again" in capsys.readouterr().out
    assert loaded_steps == ["step-00000020", "step-00000030", "step-00000040"]


def write_questions(folder: Path) -> Path:
    file = folder / "questions.txt"
    file.write_text("你好？\n", encoding="utf-8")
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_call_goes_on(
    run: Path,
    watch_run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents answers that Ctrl-C loses."""

    def interrupt(folder: Path, *arguments: Any) -> Any:
        if folder.name == "step-00000020":
            raise KeyboardInterrupt
        return load_checkpoint(folder, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_answers, "load_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            watch_run()
    capsys.readouterr()
    watch_run()
    assert "step 10, set 1" in (printed := capsys.readouterr().out)
    assert "12 of 12 were done before" in printed


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_deleted_or_damaged_checkpoint_is_left_out(
    run: Path,
    watch_run: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a traceback if training deletes a step meanwhile, and figures of damaged weights."""
    file = step_folder(run, 10) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)

    def delete_and_load(folder: Path, *arguments: Any) -> Any:
        if folder.name == "step-00000030":
            shutil.rmtree(folder)
        return load_checkpoint(folder, *arguments)

    monkeypatch.setattr(checkpoint_answers, "load_checkpoint", delete_and_load)
    results = watch_run()
    assert [entry["step"] for entry in results["steps"]] == [20]
    warnings = capsys.readouterr().err
    assert "is damaged (sha256 differs from the manifest)" in warnings
    assert f"{step_folder(run, 30)} was deleted meanwhile; left out" in warnings


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_one_checkpoint_is_told_how_to_keep_all(
    run: Path, watch_run: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a page of one column without a word about the option."""
    for step in (10, 20):
        shutil.rmtree(step_folder(run, step))
    watch_run()
    line = f"{run} keeps one checkpoint: train with --checkpoint.keep all to compare several."
    assert line in capsys.readouterr().out and line in read_page(run).text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("results/watch.json", "[1", "watch.json cannot be read as JSON"),
        ("results/watch.json", "[1]", "watch.json is not a result of evaluate.watch"),
        ("results/watch.json", "{}", "watch.json is not a result of evaluate.watch"),
        ("metrics.jsonl", '{"kind": 1}\n', "metrics.jsonl, line 1: not a record"),
        ("run.json", None, "is not a run: it has no run.json"),
        ("checkpoints", "a file", "has no usable checkpoint: train it first"),
    ],
)
def test_hostile_runs_are_named_in_one_line(
    tmp_path: Path, run_command: Run, corpus: Path, name: str, content: str | None, message: str
) -> None:
    """Prevents a traceback, and an hour of answers before a damaged file is found."""
    run = tmp_path / "run"
    (run / "results").mkdir(parents=True)
    write_checksummed_json(run / "run.json", {"shards": [], "fingerprints": {"data": []}})
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        run_command(watch, run, "--source", "redgpt", "--input", corpus)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_damaged_answers_are_refused(run: Path, watch_run: Callable[..., dict[str, Any]]) -> None:
    """Prevents answers of other questions, or of no text, on the page."""
    results = watch_run()
    file = run / "results" / "watch.json"
    for steps in (
        None,
        [{"step": 1}],
        [{**results["steps"][0], "answers": [[]]}],
        [{**results["steps"][0], "answers": [[{"text": "\ud800"}] * 12]}],
        [{**results["steps"][0], "step": "x"}],
    ):
        file.write_text(json.dumps({**results, "steps": steps}))
        with pytest.raises(UserError, match=r"watch\.json is not a result of evaluate\.watch, or"):
            watch_run()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_pretraining_run_that_keeps_all_is_watched(
    tmp_path: Path,
    tokenizer: Tokenizer,
    run_command: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents questions to a model that has learned none, and steps that are not on the page."""
    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)
    data = write_text_set(tmp_path / "text", truncate_tokenizer(tokenizer), train=60, validation=6)
    run = tmp_path / "run"
    trainer = build_trainer(run, data, checkpoint={"every": 3, "keep": "all"})
    assert trainer.train()
    trainer.close()
    assert list_steps(run) == [3, 6, 9, 12]
    assert all(check_manifest(step_folder(run, step)) is None for step in list_steps(run))
    run_command(watch, run, "--device", "cpu", "--max_new_tokens", "8")
    shown = read_page(run)
    [figures, answers] = shown.tables
    assert figures[0] == ["measure", *(f"step {step}" for step in (3, 6, 9, 12)), "without a model"]
    assert answers[0] == ["beginning", *(f"step {step}" for step in (3, 6, 9, 12))]
    assert "metrics.jsonl does not have it" in capsys.readouterr().out
