"""`python -m evaluate`: the choice of a run and of the commands that fit it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import write_checksummed_json, write_manifest
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import ShardSet
from evaluate import __main__ as command
from evaluate import measure_run
from evaluate.options import EvaluateOptions

Measure = Callable[..., list[list[str]]]


@pytest.fixture(scope="module")
def summaries(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared(root, tmp_path_factory.mktemp("sets") / "csl", limit=12)


@pytest.fixture(scope="module")
def named(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of summaries with a test split, prepared under the name of the sample."""
    corpus = {"name": "sample-csl", "parts": []}
    return prepared(root, tmp_path_factory.mktemp("sets") / "sample-csl", corpus=corpus, limit=12)


def prepared(
    root: Path, folder: Path, corpus: dict[str, Any] | None = None, **options: int
) -> Path:
    group = SourceGroup("csl", (str(root / "assets/sample/summary/csl/dev.tsv"),))
    prepare_options = PrepareOptions(workers=1, **options)
    prepare_groups([group], folder, root / "assets/tokenizer", prepare_options, corpus=corpus)
    return folder


def make_run(folder: Path, *sets: Path) -> Path:
    """Write the run.json of a run that was trained on these sets."""
    opened = [ShardSet.open(each) for each in sets]
    write_checksummed_json(
        folder / "run.json",
        {
            "shards": [str(each.folder) for each in opened],
            "fingerprints": {"data": [{"set": each.fingerprint, "weight": 1.0} for each in opened]},
        },
    )
    return folder


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Measure:
    """Return the commands of a command line, in a folder without runs."""

    def _measure(*arguments: object) -> list[list[str]]:
        ran: list[list[str]] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(measure_run, "_run_command", ran.append)
        monkeypatch.setattr("sys.argv", ["evaluate", *map(str, arguments)])
        command.main()
        return ran

    return _measure


def after(arguments: list[str], option: str) -> str:
    return arguments[arguments.index(option) + 1]


@pytest.mark.slow
def test_mixture_is_evaluated_per_dataset(
    summaries: Path, shard_set: Path, tmp_path: Path, measure: Measure
) -> None:
    """Prevents parts of a mixture that overwrite the results of parts of the same name."""
    sets = [
        shutil.copytree(each, tmp_path / str(number) / "same")
        for number, each in enumerate((summaries, shard_set))
    ]
    ran = measure("--checkpoint", make_run(tmp_path / "run", *sets))
    assert [arguments[0] for arguments in ran] == ["evaluate.perplexity"] * 2 + ["evaluate.report"]
    assert [after(arguments, "--data") for arguments in ran[:2]] == list(map(str, sets))
    assert len({after(arguments, "--json") for arguments in ran[:2]}) == 2


@pytest.mark.slow
def test_mixture_predictions_are_written_separately(
    named: Path, tmp_path: Path, measure: Measure
) -> None:
    """Prevents the repetition of one part from using the answers to another."""
    sets = [shutil.copytree(named, tmp_path / str(number) / "same") for number in range(2)]
    ran = measure("--checkpoint", make_run(tmp_path / "run", *sets))
    written = [
        after(arguments, "--predictions") for arguments in ran if "--predictions" in arguments
    ]
    assert len(set(written)) == 2
    assert written == [
        after(arguments, "--score") for arguments in ran if arguments[0] == "evaluate.repetition"
    ]


def test_what_cannot_be_measured_does_not_stop_the_rest(
    shard_set: Path, tmp_path: Path, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a run without a report because one measure needs more records than there are."""
    run = make_run(tmp_path / "run", shutil.copytree(shard_set, tmp_path / "set"))
    ran: list[str] = []

    def fail_trigram(arguments: list[str]) -> int:
        ran.append(arguments[0])
        return int(arguments[0] == "evaluate.trigram")

    monkeypatch.setattr(measure_run, "_run_command", fail_trigram)
    with pytest.raises(UserError, match=r"not measured, for the reasons above: trigram$"):
        measure_run.measure_run(EvaluateOptions(checkpoint=run))
    assert ran == ["evaluate.perplexity", "evaluate.trigram", "evaluate.rules", "evaluate.report"]


def test_each_pretraining_dataset_has_a_trigram_baseline(
    shard_set: Path, tmp_path: Path, measure: Measure
) -> None:
    """Prevents a pretraining mixture without baselines, and replay with one."""
    sets = [shutil.copytree(shard_set, tmp_path / name) for name in ("wikipedia", "zhihu")]
    ran = measure("--checkpoint", make_run(tmp_path / "run", *sets))
    # The rules are of no set: they are asked for once.
    assert [arguments[0] for arguments in ran] == [
        *["evaluate.perplexity", "evaluate.trigram"] * 2,
        "evaluate.rules",
        "evaluate.report",
    ]
    assert [after(arguments, "--data") for arguments in ran[:-2]] == [
        str(each) for each in sets for _ in range(2)
    ]
    assert [Path(after(arguments, "--json")).name for arguments in ran[:-1]] == [
        "perplexity-wikipedia.json",
        "trigram-wikipedia.json",
        "perplexity-zhihu.json",
        "trigram-zhihu.json",
        "rules.json",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["summaries", "text"])
def test_dataset_without_validation_split_is_skipped(
    root: Path,
    shard_set: Path,
    tmp_path: Path,
    measure: Measure,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """Prevents a missing dev split from stopping all other measurements."""
    folder = tmp_path / "text"
    if kind == "summaries":
        prepared(root, folder, limit=12, validation=0)
    else:
        corpus = tmp_path / "corpus.jsonl"
        texts = (chr(0x4E00 + number) * 30 + "，船来了，他们都上了船。" for number in range(9))
        corpus.write_text("".join(f'{{"text": "{text}"}}\n' for text in texts))
        prepare_groups(
            [SourceGroup("jsonl", (str(corpus),))],
            folder,
            root / "assets/tokenizer",
            PrepareOptions(workers=1, validation=0),
        )
    ran = measure("--checkpoint", make_run(tmp_path / "run", folder))
    rules = ["evaluate.rules"] if kind == "text" else []
    assert [arguments[0] for arguments in ran] == [*rules, "evaluate.report"]
    assert "has no validation split" in capsys.readouterr().out


def test_options_are_forwarded_to_every_evaluation(
    named: Path, shard_set: Path, tmp_path: Path, measure: Measure
) -> None:
    """Prevents `--limit`, `--device` or `--quantize` from reaching only some of the commands."""
    run = make_run(tmp_path / "run", named, shard_set)
    *ran, report = measure(
        "--checkpoint", run, "--limit", 5, "--device", "cpu", "--quantize", "int8"
    )
    assert [arguments[0] for arguments in ran] == [
        "evaluate.perplexity",
        "evaluate.rouge",
        "evaluate.repetition",
        "evaluate.rouge",
        "evaluate.perplexity",
    ]
    assert [Path(after(arguments, "--json")).name for arguments in ran[1:4]] == [
        "rouge-sample-csl.json",
        "repetition-sample-csl.json",
        "rouge-dialogue-sample-csl.json",
    ]
    # A limit of text counts tokens; a file of answers needs no model.
    assert ["--limit" in arguments for arguments in ran] == [True, True, False, True, False]
    assert all(after(ran[index], "--limit") == "5" for index in (0, 1, 3))
    for option in ("--device", "--quantize"):
        assert [option in arguments for arguments in ran] == [True, True, False, True, True]
    assert report[0] == "evaluate.report"
    for limit in (0, -1):
        with pytest.raises(UserError, match=f"--limit: '{limit}' is not valid"):
            measure("--checkpoint", run, "--limit", limit)


def test_newest_run_is_evaluated(
    shard_set: Path, tmp_path: Path, measure: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a touched run, or one without checkpoints, from being the newest."""
    with pytest.raises(UserError, match="no run with a checkpoint in runs/: make pretrain first"):
        measure()
    for name, saved in (("touched", 100), ("newest", 200), ("unsaved", None)):
        run = make_run(tmp_path / "runs" / name, shard_set)
        if saved:
            (step := run / "checkpoints" / "step-00000001").mkdir(parents=True)
            os.utime(step, (saved, saved))
    os.utime(tmp_path / "runs" / "newest", (50, 50))
    ran = measure()
    assert after(ran[0], "--checkpoint") == "runs/newest" and ran[-1][1] == "runs/newest"
    assert "evaluating runs/newest" in capsys.readouterr().out


def test_step_folder_is_evaluated_like_its_run(
    shard_set: Path, tmp_path: Path, measure: Measure, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents the refusal of a step folder, and results outside of its run."""
    run = make_run(tmp_path / "run", shard_set)
    step = run / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    write_manifest(step, {"step": 7})
    (best := step.with_name("best")).symlink_to(step.name)
    *ran, report = measure("--checkpoint", best)
    assert {
        after(arguments, "--checkpoint") for arguments in ran if "--checkpoint" in arguments
    } == {str(best)}
    assert {Path(after(arguments, "--json")).parent for arguments in ran} == {run / "results"}
    assert report == ["evaluate.report", str(run), "--out", str(run / "report")]
    assert f"evaluating step 7 of {run}" in capsys.readouterr().out
    for other, message in (
        (shard_set, "is neither a run nor one of its steps"),
        (tmp_path / "no", "does not exist: name a run"),
    ):
        with pytest.raises(UserError, match=f"{other} {message}"):
            measure("--checkpoint", other)


def test_checkpoints_are_watched_if_a_run_keeps_several(
    shard_set: Path, tmp_path: Path, measure: Measure
) -> None:
    """Prevents a comparison of one checkpoint with itself, and one that runs on another device."""
    run = make_run(tmp_path / "run", shard_set)
    watched = []
    for step in (3, 7):
        (folder := run / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        write_manifest(folder, {"step": step})
        ran = measure("--checkpoint", run, "--device", "cpu")
        watched.append([arguments for arguments in ran if arguments[0] == "evaluate.watch"])
    assert watched == [[], [["evaluate.watch", str(run), "--device", "cpu"]]]


def test_a_tuned_run_is_compared_with_its_base(
    shard_set: Path, tmp_path: Path, measure: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a report without what tuning changed, of another step, or with other options."""
    run = make_run(tmp_path / "run", shard_set)
    step = run / "checkpoints" / "step-00000007"
    step.mkdir(parents=True)
    write_manifest(step, {"step": 7})
    monkeypatch.setattr(measure_run, "find_base", lambda _: tmp_path / "base")
    options = ["--before", str(tmp_path / "base"), "--device", "cpu", "--limit", "20"]
    for checkpoint in (run, step):
        *_, report = measure("--checkpoint", checkpoint, "--device", "cpu", "--limit", 20)
        assert report == [
            *("evaluate.report", str(checkpoint), "--out", str(run / "report")),
            *options,
        ]
