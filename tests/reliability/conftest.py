"""Tiny training runs as real processes, small disks, and runs that were never stopped to compare with."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.kill import Scenario, fine_tuning, pretraining


@pytest.fixture(scope="session")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """40 steps of pretraining a tiny model."""
    return pretraining(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def whole(pretrain: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretraining run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    child = pretrain.start(run)
    assert child.wait() == 0, child.said
    return run


@pytest.fixture(scope="session")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Three epochs of fine-tuning a tiny model."""
    return fine_tuning(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run that was never stopped, to do harm to."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured whenever a trainer is made, which takes long beside other work."""
    monkeypatch.setattr("train.clock.matmul_flops", lambda *_: 1e9)


Mount = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    """Mounts a disk of its own (tmpfs) with the options given, or mounts it again with others; gives its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        said = f"remount,{options}" if mounted else options
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", said, "tmpfs", str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted = True
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
