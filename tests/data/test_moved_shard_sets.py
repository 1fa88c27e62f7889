"""The shard sets of a run whose project was moved, copied or cloned."""

import shutil
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import write_checksummed_json, write_manifest
from data.shards import SHARD_FORMAT, ShardSet, load_run_shard_sets


@pytest.fixture
def project(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a moved project with a set in prepared/, one beside it, and a run on both."""
    old, new = tmp_path / "old", tmp_path / "new"
    folders = [old / "prepared" / "sample-12345678", old / "mine"]
    for folder in folders:
        shutil.copytree(shard_set, folder)
    data = [{"set": ShardSet.open(folder).fingerprint, "weight": 1.0} for folder in folders]
    (old / "runs" / "x" / "checkpoints" / "step-00000010").mkdir(parents=True)
    write_checksummed_json(
        old / "runs" / "x" / "run.json",
        {"shards": list(map(str, folders)), "fingerprints": {"data": data}},
    )
    old.rename(new)
    monkeypatch.chdir(new)
    return new


@pytest.mark.parametrize("run", ["runs/x", "runs/x/checkpoints/step-00000010"])
def test_moved_project_run_finds_its_shard_sets(project: Path, run: str) -> None:
    """Prevents a moved run from losing the data that it is measured on."""
    assert [shards.folder for shards in load_run_shard_sets(Path(run))] == [
        Path("prepared/sample-12345678"),
        Path("mine"),
    ]


def test_copied_and_external_runs_find_their_shard_sets(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents sets from being looked for in one place only."""
    monkeypatch.chdir(tmp_path)
    assert [shards.folder for shards in load_run_shard_sets(Path("new/runs/x"))][
        1
    ] == project / "mine"
    shutil.copytree(project / "runs" / "x", tmp_path / "usb" / "x")
    monkeypatch.chdir(project)
    assert len(load_run_shard_sets(tmp_path / "usb" / "x")) == 2


def test_same_named_set_with_different_bytes_is_not_used(project: Path) -> None:
    """Prevents a model from being measured on the text of another preparation."""
    tokens = project / "mine" / "train-00000.tokens.npy"
    tokens.write_bytes(tokens.read_bytes()[:-2] + b"\x00\x01")
    write_manifest(project / "mine", {"format": SHARD_FORMAT, "kind": "documents"})
    assert ShardSet.open(project / "mine", checksums=True)
    with pytest.raises(
        UserError,
        match=r"old/mine, which runs/x was trained on, is gone, and prepared/mine .*--data",
    ) as caught:
        load_run_shard_sets(Path("runs/x"))
    assert "\n" not in str(caught.value)


def test_moved_project_continued_run_replays_its_text(project: Path) -> None:
    """Prevents fine-tuning with replay from failing, or replaying other text, after a move."""
    from train.replay import open_replay_set
    from train.run.initial_checkpoint import InitialCheckpoint

    base = InitialCheckpoint(None, project / "tokenizer", "none")
    assert open_replay_set(Path("runs/x"), base, 1).folder == Path("mine")
    shutil.rmtree(project / "mine")
    with pytest.raises(
        UserError,
        match=r"old/mine, which runs/x was trained on, is gone, .*put it back, or name a new run",
    ):
        open_replay_set(Path("runs/x"), base, 1)
