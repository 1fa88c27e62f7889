"""The run directory: one process at a time, and only in a directory that is a run."""

import fcntl
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from train.run.directory import RunDir

RECORD = {"shards": [], "fingerprints": {"seed": 0}}
CPU = torch.device("cpu")


def test_run_directory_is_locked(tmp_path: Path) -> None:
    """Prevent a second `make pretrain` from deleting the checkpoint that the first is writing."""
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    first.open({}, RECORD, CPU)
    with pytest.raises(UserError, match="being trained by another process"):
        second.open({}, RECORD, CPU)
    first.close()
    second.open({}, RECORD, CPU)
    with (tmp_path / "run" / "lock").open("w") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    second.close()


def test_foreign_folder_is_not_modified(tmp_path: Path) -> None:
    """Prevent `--run ~/thesis` from filling it with checkpoints."""
    (tmp_path / "thesis.txt").write_text("mine", encoding="utf-8")
    for folder in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(UserError, match="is not a run"):
            RunDir(folder).open({}, RECORD, CPU)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text(encoding="utf-8") == "mine"
