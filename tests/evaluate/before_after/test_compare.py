"""`python -m evaluate.report --before`: what tuning changed, on one page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json, write_manifest
from common.run_layout import step_folder
from data.prepare.options import PrepareOptions
from data.shards import ShardSet
from evaluate.before_after import compare, tasks
from evaluate.kinds.conversations import ChatQuestions
from evaluate.load_model import load_checkpoint
from evaluate.report import __main__ as report
from evaluate.report import page
from model.tokenizer.base import Tokenizer
from tests.helpers.hf_checkpoints import update_json
from tests.helpers.passage_questions import (
    LOOP,
    PLACES,
    passage_lessons,
    question,
    save_looping_weights,
    write_passage_corpus,
)
from tests.helpers.prepare import prepare_source
from tests.helpers.reports import ReportParser

Run = Callable[..., None]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return conversations about passages in the format of RedGPT."""
    return write_passage_corpus(tmp_path_factory.mktemp("corpus") / "redgpt.jsonl")


@pytest.fixture(scope="module")
def trained_runs(
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    root: Path,
    corpus: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return a folder with the runs `base`, which answers rightly, and `tuned`, which loops."""
    folder = tmp_path_factory.mktemp("runs")
    options = PrepareOptions(workers=1)
    shards_folder = folder / "set"
    prepare_source("redgpt", [str(corpus)], shards_folder, root / "assets" / "tokenizer", options)
    shards = ShardSet.open(shards_folder)
    for name in ("base", "tuned"):
        (folder / name / "checkpoints").mkdir(parents=True)
        record = {
            "shards": [str(shards.folder)],
            "fingerprints": {"data": [{"set": shards.fingerprint, "weight": 1.0}]},
        }
        write_checksummed_json(folder / name / "run.json", record)
    step = teach(passage_lessons(tokenizer), step_folder(folder / "base", 20))
    write_manifest(step, {"step": 20})
    looping = shutil.copytree(step, step_folder(folder / "tuned", 5))
    save_looping_weights(looping, tokenizer)
    write_manifest(looping, {"step": 5})
    return folder


@pytest.fixture
def runs(trained_runs: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the runs, of which the test split is the corpus."""
    monkeypatch.setattr(tasks, "find_test_split", lambda _: ("redgpt", [corpus]))
    monkeypatch.setattr(page, "plot_intervals", lambda *arguments: b"<svg/>")
    for name in ("base", "tuned"):
        shutil.copytree(trained_runs / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def report_before(run_command: Run, runs: Path) -> Callable[..., dict[str, Any]]:
    """Report on a run and its base, on a CPU; return the contents of the results file."""

    def _report(before: str, run: str, *arguments: object) -> dict[str, Any]:
        run_command(
            report,
            *(runs / run, "--before", runs / before, "--out", runs / "out", "--device", "cpu"),
            *("--max_new_tokens", 24, *arguments),
        )
        file = runs / run.partition("/")[0] / "results" / "before-after.json"
        results: dict[str, Any] = json.loads(file.read_text("utf-8"))
        return results

    return _report


@pytest.mark.slow
def test_a_run_that_got_loopier_is_called_that(
    runs: Path, report_before: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a tuned model that loops and forgot, and a page that does not say so."""
    results = report_before("base", "tuned")
    printed = capsys.readouterr().out
    shown = ReportParser((runs / "out.html").read_text(encoding="utf-8"))
    name = "old and new task"
    for sentence in (
        f"{name}: reads worse: exact answers 100.0 % → 0.0 %, -100.0 points (-100.0 – ",
        f"{name}: loopier: looping answers 0.0 % → 100.0 %, +100.0 points (+",
        f"{name}: stops less often: answers ended by <eos> 100.0 % → 0.0 %, -100.0 points",
        f"{name}: longer: characters per answer 2.0 → 24.0, +22.0 (+22.0 – +22.0) (n = 12)",
        f"{name}: forgot: loss, nats per token 0.0",
    ):
        assert sentence in printed and sentence in shown.text and sentence in results["conclusions"]
    assert f"before: {runs / 'base'} (step 20)" in printed
    assert f"after:  {runs / 'tuned'} (step 5)" in printed
    assert shown.find_row("looping answers")[:2] == [
        "0.0 % (0.0 – 24.2)",
        "100.0 % (75.8 – 100.0)",
    ]
    assert shown.find_row("exact answers")[3] == "8.3 % (most frequent answer)"
    for number, place in enumerate(PLACES):
        assert shown.find_row(question(number)) == [place, place, f"{LOOP}\n(loops)"]
    assert results["before"]["step"] == 20 and results["step"] == 5
    [answers] = results["answers"]
    assert answers["before"] == list(PLACES) and answers["after"] == [LOOP] * 12
    # The figures are in the results of the run, for later reports.
    [row] = [row for table in shown.tables for row in table if row[0].endswith("loops.change")]
    assert row[1].startswith("1.0000 (")
    assert not list((runs / "tuned" / "results").glob("*.partial"))


@pytest.mark.slow
def test_the_other_way_round_is_called_the_opposite(
    report_before: Callable[..., dict[str, Any]],
) -> None:
    """Prevents models that are mixed up: praise for what got worse; and a step without results."""
    results = report_before("tuned", "base/checkpoints/step-00000020", "--limit", 10)
    words = [
        line.split(": ")[1] for line in results["conclusions"].split(". ") if line.startswith("old")
    ]
    assert words == ["reads better", "less loopy", "stops more often", "shorter", "lower loss"]
    assert results["answers"][0]["questions"] == [question(number) for number in range(10)]


@pytest.mark.slow
def test_an_interrupted_call_goes_on(
    report_before: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents the answers of the base from being lost by Ctrl-C, and answers of other weights."""

    def interrupt(path: Path, *arguments: Any) -> Any:
        if path.name == "tuned":
            raise KeyboardInterrupt
        return load_checkpoint(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compare, "load_checkpoint", interrupt)
        with pytest.raises(KeyboardInterrupt):
            report_before("base", "tuned")
    capsys.readouterr()
    results = report_before("base", "tuned")
    printed = capsys.readouterr().out
    assert printed.count("12 of 12 were done before") == 2
    assert results["answers"][0]["after"] == [LOOP] * 12


@pytest.mark.slow
def test_both_are_scored_on_the_same_text(
    runs: Path,
    report_before: Callable[..., dict[str, Any]],
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents a loss of two answers before and of one after, from models of different lengths."""
    dialogue = f"Human: {question(0)}\n\nAssistant: 山{'水' * 150}"
    first_turn = f"Human: {question(1)}\n\nAssistant: 河\n\n"
    record = {"reference": "小驼住在山。", "dialogue": first_turn + dialogue}
    (runs / "long.jsonl").write_text(json.dumps(record, ensure_ascii=False) + "\n", "utf-8")
    monkeypatch.setattr(tasks, "find_test_split", lambda _: ("redgpt", [runs / "long.jsonl"]))
    step = step_folder(runs / "tuned", 5)
    update_json(step, trained_length=64)
    write_manifest(step, {"step": 5})
    compared = []
    monkeypatch.setattr(compare, "compare_losses", lambda measure, *scores: compared.append(scores))
    for pair in (("base", "tuned"), ("tuned", "base")):
        report_before(*pair)
    assert len(compared) == 2
    for before, after in compared:
        assert [score.num_tokens for score in before] == [score.num_tokens for score in after]
        assert 0 < before[0].num_tokens < 10


@pytest.mark.slow
def test_questions_without_room_leave_the_loss(
    runs: Path, report_before: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a run on short rows without a report, because its base reads long passages."""
    monkeypatch.setattr(
        ChatQuestions, "generate", lambda self, loaded, chunk, **options: [None] * len(chunk)
    )
    results = report_before("base", "tuned")
    [task] = results["tasks"].values()
    assert task.keys() == {"data", "loss"} and results["answers"] == []
    assert "forgot" in results["conclusions"]


def test_pairs_that_cannot_be_compared_are_refused(
    runs: Path, report_before: Callable[..., dict[str, Any]]
) -> None:
    """Prevents a comparison of a model with itself, and losses of other tokens as forgetting."""
    with pytest.raises(UserError, match="has the same weights as"):
        report_before("base", "base")
    tokenizer_file = step_folder(runs / "tuned", 5) / "tokenizer.model"
    content = tokenizer_file.read_bytes()
    # Another character, of the same length.
    assert "驼".encode() in content
    tokenizer_file.write_bytes(content.replace("驼".encode(), "龘".encode()))
    write_manifest(step_folder(runs / "tuned", 5), {"step": 5})
    with pytest.raises(UserError, match="has another tokenizer than") as caught:
        report_before("base", "tuned")
    assert "\n" not in str(caught.value)
