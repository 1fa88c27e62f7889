"""Tiny training runs as real processes, runs that were never stopped to compare with, small disks, little memory, a model."""

import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.fault_injection.kill import Scenario, find_differences, pretrain_scenario, sft_scenario


def assert_resumes_like(scenario: Scenario, run: Path, whole: Path) -> None:
    """Resume a run with the same command, and compare its end with the run never stopped."""
    child = scenario.start(run)
    assert child.wait() == 0, child.output
    assert find_differences(run, whole) == []


@pytest.fixture(scope="session")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """40 steps of pretraining a tiny model."""
    return pretrain_scenario(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def whole(pretrain: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretraining run that was never stopped."""
    run = tmp_path_factory.mktemp("whole") / "run"
    child = pretrain.start(run, fresh_interpreter=True)
    assert child.wait() == 0, child.output
    return run


@pytest.fixture(scope="session")
def tune(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Three epochs of fine-tuning a tiny model."""
    return sft_scenario(tmp_path_factory.mktemp("tuning"))


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run that was never stopped, to do harm to."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's rate is measured whenever a trainer is made, which takes long beside other work."""
    monkeypatch.setattr("train.throughput.matmul_flops", lambda *_: 1e9)


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
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", said, "tmpfs", str(folder)],
            capture_output=True,
            text=True,
        )
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
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    (tmp_path / "model").mkdir()
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, tmp_path / "model")
    return tmp_path / "model"


@dataclass
class Ext4:
    """A disk of its own, a file with ext4 in it, that can turn read-only under those who write to it."""

    image: Path
    folder: Path

    def mount(self) -> None:
        """Mount it."""
        ordered("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder))

    def fault(self) -> Path:
        """The file into which a 1 makes the kernel find an error on the disk."""
        device = ordered("findmnt", "--noheadings", "--output", "SOURCE", str(self.folder)).strip()
        return Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"

    def mount_again(self) -> None:
        """What its owner does after a fault. What was written and not synced before is lost."""
        ordered("umount", str(self.folder))
        self.mount()


def ordered(*words: str) -> str:
    """What a command prints; the test is skipped where there is no such command, or it may not do it."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip(f"there is no {words[0]} here")
    except subprocess.CalledProcessError as error:
        pytest.skip(
            f"a disk cannot be made and mounted here, which takes root and loop devices: {error.stderr.strip()}"
        )


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    """A mounted one."""
    made = Ext4(tmp_path / "image", tmp_path / "ext4")
    made.folder.mkdir()
    with made.image.open("wb") as file:
        file.truncate(64 << 20)
    ordered("mkfs.ext4", "-q", str(made.image))
    made.mount()
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)
