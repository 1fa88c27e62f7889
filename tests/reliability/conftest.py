"""Tiny training runs as real processes, runs that were never stopped to compare with, small disks, little memory, a model."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.kill import Scenario, differences, fine_tuning, pretraining
from model import checkpoints
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer import Tokenizer


def goes_on(scenario: Scenario, run: Path, whole: Path) -> None:
    """The same command once more lets a run end as the one that was never stopped."""
    child = scenario.start(run)
    assert child.wait() == 0, child.said
    assert differences(run, whole) == []


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


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes bytes into a file of the test's own; gives its path."""

    def _write(data: bytes, name: str = "file.jsonl") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return _write


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


@pytest.fixture
def little_memory() -> Iterator[None]:
    """No more than 1.5 GB beyond what this process has mapped by now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (3 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """A small checkpoint folder."""
    config = LlamaConfig(vocab_size=tokenizer.vocabulary_size, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=16)
    (tmp_path / "model").mkdir()
    checkpoints.save(Llama(config).initialise(0), tokenizer, tmp_path / "model")
    return tmp_path / "model"
