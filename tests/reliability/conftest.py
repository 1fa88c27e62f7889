"""Fixtures: tiny training runs as processes, small disks, a memory limit, a checkpoint."""

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
from tests.fault_injection.child import run_in_test_process
from tests.fault_injection.kill import Scenario, find_differences, pretrain_scenario


def assert_resumes_like(scenario: Scenario, run: Path, whole: Path) -> None:
    """Resume a run with the same command, and compare its end with the run never stopped."""
    child = scenario.start(run)
    assert child.wait() == 0, child.output
    assert find_differences(run, whole) == []


@pytest.fixture(scope="session")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Return the scenario of 20 pretraining steps of a tiny model."""
    return pretrain_scenario(tmp_path_factory.mktemp("pretraining"))


@pytest.fixture(scope="session")
def whole(pretrain: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an uninterrupted pretraining run."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_in_test_process(pretrain.module, [*pretrain.arguments, "--run", str(run)])
    return run


@pytest.fixture
def finished(whole: Path, tmp_path: Path) -> Path:
    """Return a copy of the uninterrupted run, for tests that damage it."""
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the measurement of the matmul rate, which is slow beside other work."""
    monkeypatch.setattr("train.monitoring.throughput.matmul_flops", lambda *_: 1e9)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes bytes to a file and returns the path."""

    def _write(data: bytes, name: str = "file.jsonl") -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return _write


Mount = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mount]:
    """Return a function that mounts a tmpfs, or remounts it with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        mount_options = f"remount,{options}" if mounted else options
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", mount_options, "tmpfs", str(folder)],
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
    """Limit the address space to 1.5 GB beyond what this process has mapped."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + (3 << 29), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def model(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    """Return the folder of a small checkpoint."""
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
    """An ext4 file system in an image file, which can turn read-only while it is written to."""

    image: Path
    folder: Path

    def mount(self) -> None:
        """Mount it."""
        run_or_skip("mount", "-o", "loop,errors=remount-ro", str(self.image), str(self.folder))

    def fault(self) -> Path:
        """Return the file into which a 1 makes the kernel report an error on the disk."""
        device = run_or_skip(
            "findmnt", "--noheadings", "--output", "SOURCE", str(self.folder)
        ).strip()
        return Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"

    def mount_again(self) -> None:
        """Remount after a fault; data that was not synced before it is lost."""
        run_or_skip("umount", str(self.folder))
        self.mount()


def run_or_skip(*command: str) -> str:
    """Return the output of a command, or skip the test if it is missing or not permitted."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip(f"there is no {command[0]} here")
    except subprocess.CalledProcessError as error:
        pytest.skip(
            "a disk cannot be made and mounted here, which takes root and loop devices: "
            f"{error.stderr.strip()}"
        )


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    """Mount a new ext4 file system of 64 MB."""
    file_system = Ext4(tmp_path / "image", tmp_path / "ext4")
    file_system.folder.mkdir()
    with file_system.image.open("wb") as file:
        file.truncate(64 << 20)
    run_or_skip("mkfs.ext4", "-q", str(file_system.image))
    file_system.mount()
    yield file_system
    subprocess.run(["umount", "-l", str(file_system.folder)], check=True)
