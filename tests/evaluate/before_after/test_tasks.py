"""The data that a base and a tuned run are compared on."""

from pathlib import Path

import pytest

from common.errors import UserError
from common.files import write_checksummed_json
from data.prepare.options import PrepareOptions
from data.shards import ShardSet
from evaluate.before_after import tasks
from evaluate.before_after.tasks import load_tasks
from evaluate.kinds.documents import TextBeginnings
from tests.helpers.prepare import prepare_source

SAMPLES = {
    "csl": "summary/csl/dev.tsv",
    "redgpt": "sft/redgpt",
    "wikipedia": "pretrain/wikipedia.jsonl",
}


@pytest.fixture(scope="module")
def shard_sets(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    """Return small sets of the sample by their source."""
    folder = tmp_path_factory.mktemp("sets")
    options = PrepareOptions(workers=1, limit=40, validation=0.2)
    for source, path in SAMPLES.items():
        inputs = [str(root / "assets" / "sample" / path)]
        prepare_source(source, inputs, folder / source, root / "assets" / "tokenizer", options)
    return {source: ShardSet.open(folder / source) for source in SAMPLES}


def make_run(folder: Path, *sets: ShardSet) -> Path:
    """Write the run.json of a run that was trained on these sets."""
    fingerprints = [{"set": shards.fingerprint, "weight": 1.0} for shards in sets]
    record = {
        "shards": [str(shards.folder) for shards in sets],
        "fingerprints": {"data": fingerprints},
    }
    write_checksummed_json(folder / "run.json", record)
    return folder


@pytest.mark.slow
def test_the_data_of_both_is_compared_on(shard_sets: dict[str, ShardSet], tmp_path: Path) -> None:
    """Prevents an old task that is not asked about, one asked twice, and replay as a task."""
    csl, redgpt, wikipedia = (shard_sets[name] for name in ("csl", "redgpt", "wikipedia"))
    base = make_run(tmp_path / "base", csl, redgpt, wikipedia)
    run = make_run(tmp_path / "run", redgpt, wikipedia)
    found = load_tasks(base, run, 5)
    assert [(task.name, task.is_old) for task in found] == [
        ("old task", True),
        ("old and new task", True),
    ]
    assert [task.label for task in found] == [
        f"{csl.folder} validation",
        f"{redgpt.folder} validation",
    ]
    assert [len(task.records) for task in found] == [5, 5]
    # Two tasks of a name are told apart.
    both = make_run(tmp_path / "both", csl, redgpt)
    named = load_tasks(make_run(tmp_path / "imported"), both, 2)
    assert [task.name for task in named] == ["new task 1", "new task 2"]
    # A pretraining run is compared on its text.
    pretrained = make_run(tmp_path / "pretrained", wikipedia)
    text, new = load_tasks(pretrained, run, 5)
    assert (text.name, new.name) == ("old task", "new task") and not new.is_old
    assert isinstance(text.question_set, TextBeginnings) and len(text.records) == 5
    sequences = wikipedia.load_text("validation")
    texts = [wikipedia.load_tokenizer().decode(sequences.tokens(n).tolist()) for n in range(5)]
    assert [record.plain_text() for record in text.records] == texts


@pytest.mark.slow
def test_the_test_split_is_asked_about_if_there_is_one(
    shard_sets: dict[str, ShardSet], tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents figures on the dev split, by which the best checkpoint was chosen."""
    file = root / "assets" / "sample" / "summary" / "csl" / "test.tsv"
    monkeypatch.setattr(tasks, "find_test_split", lambda _: ("csl", [file]))
    run = make_run(tmp_path / "run", shard_sets["csl"])
    [task] = load_tasks(run, run, 3)
    first = file.read_text(encoding="utf-8").split("\t")[0]
    assert task.label == f"{shard_sets['csl'].folder} test"
    assert getattr(task.records[0], "title", None) == first


@pytest.mark.slow
def test_data_that_is_gone_is_named(
    shard_sets: dict[str, ShardSet], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a report that fails because the base was imported, exported or moved."""
    run = make_run(tmp_path / "run", shard_sets["csl"])
    gone = make_run(tmp_path / "gone")
    record = {"shards": ["/nowhere"], "fingerprints": {"data": [{"set": "0" * 64}]}}
    write_checksummed_json(gone / "run.json", record)
    for base in (make_run(tmp_path / "imported"), tmp_path, gone):
        [task] = load_tasks(base, run, 3)
        assert task.name == "new task"
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'imported'} has no data of its own" in printed
    assert "is gone" in printed and "its tasks are left out" in printed
    with pytest.raises(UserError, match="has data to compare them on") as caught:
        load_tasks(tmp_path, gone, 3)
    assert "\n" not in str(caught.value)
