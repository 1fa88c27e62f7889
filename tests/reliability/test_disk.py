"""A full, read-only or vanished disk: one line, exit code 2, and nothing whole is lost."""

import importlib
import itertools
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from common.errors import describe_disk_error, run_main
from common.files import check_manifest, write_json
from common.metrics_file import read_metrics
from common.run_layout import list_steps, step_folder
from data.shards import ShardSet
from tests.fault_injection.child import running_child
from tests.fault_injection.kill import ROOT, Scenario, find_differences
from tests.reliability.conftest import Ext4, Mount
from train.monitoring.metrics_log import MetricsLog


def the_line(output: str) -> str:
    """Return the only error line of a command, which must be its last line."""
    lines = output.rstrip("\n").split("\n")
    assert (
        "Traceback" not in output
        and [line for line in lines if line.startswith("error: ")] == lines[-1:]
    ), output
    return lines[-1]


@pytest.mark.slow
def test_training_survives_full_disk(
    pretrain: Scenario, whole: Path, disk: Mount, tmp_path: Path
) -> None:
    """Prevents a traceback, half a checkpoint that fills the disk, and a lost last checkpoint."""
    # Two checkpoints find room on it, three do not.
    run = disk(f"size={int(2.6 * size(step_folder(whole, list_steps(whole)[-1])))}") / "run"
    arguments = [*pretrain.arguments, "--run", str(run)]
    with running_child(pretrain.module, arguments, tmp_path / "log") as child:
        assert child.wait() == 2, child.output
    line = the_line(child.output)
    assert (
        "the disk is full: make room" in line
        and f"resumes from the last whole checkpoint in {run}" in line
    )
    assert list_steps(run) and all(
        check_manifest(step_folder(run, step)) is None for step in list_steps(run)
    )
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    disk("size=1g")
    with running_child(pretrain.module, arguments, tmp_path / "again.log") as child:
        assert child.wait() == 0, child.output
    assert find_differences(run, whole) == []


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_metrics_log_on_full_disk_gives_one_error(
    disk: Mount, capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents tracebacks of TensorBoard's thread, lost records and a broken last line."""
    run = disk("size=256k")
    log = MetricsLog(run, 0)
    (run / "other").write_bytes(bytes(shutil.disk_usage(run).free - (16 << 10)))
    with pytest.raises(OSError) as caught:
        for step in range(10_000):
            log.write("train", step, loss=1.0)
    assert "the disk is full" in (describe_disk_error(caught.value) or "")
    (run / "other").unlink()
    log.close()
    assert "Traceback" not in capfd.readouterr().err
    written = [record["step"] for record in read_metrics(run)]
    assert written == list(range(len(written))) and len(written) > 10


@dataclass(frozen=True)
class Vanish:
    """Fault: the run is deleted in the fifth step."""

    run: Path

    def __call__(self) -> None:
        from train.trainer import Trainer

        step = Trainer.train_step

        def vanishing(trainer: Trainer) -> None:
            step(trainer)
            if trainer.state.step == 5:
                shutil.rmtree(self.run)

        Trainer.train_step = vanishing  # type: ignore[method-assign]


@pytest.mark.slow
def test_deleted_run_directory_is_not_recreated(pretrain: Scenario, tmp_path: Path) -> None:
    """Prevents a folder with one checkpoint that no command can use."""
    run = tmp_path / "run"
    with running_child(
        pretrain.module, [*pretrain.arguments, "--run", str(run)], tmp_path / "log", Vanish(run)
    ) as child:
        assert child.wait() == 2, child.output
    assert f"{run} is gone" in the_line(child.output) and not run.exists()


@dataclass(frozen=True)
class TurnReadOnly:
    """Fault: after `count` calls the kernel reports a disk error and remounts it read-only.

    `what` is "step" or, while a checkpoint is being written, "checkpoint".
    """

    what: str
    count: int
    fault: Path

    def __call__(self) -> None:
        import train.checkpoint
        import train.trainer

        owner, name = (
            (train.trainer.Trainer, "train_step")
            if self.what == "step"
            else (train.checkpoint, "save_file")
        )
        real, calls = getattr(owner, name), itertools.count(1)

        def failing(*arguments: Any) -> None:
            real(*arguments)
            if next(calls) == self.count:
                self.fault.write_text("1")

        setattr(owner, name, failing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "count", "file"), [("step", 16, "metrics.jsonl"), ("checkpoint", 5, "step-00000016")]
)
def test_disk_turning_read_only_during_training(
    what: str, count: int, file: str, pretrain: Scenario, whole: Path, ext4: Ext4, tmp_path: Path
) -> None:
    """Prevents a traceback, training that cannot be saved, and an unsynced checkpoint."""
    run = ext4.folder / "run"
    arguments, fault = (
        [*pretrain.arguments, "--run", str(run)],
        TurnReadOnly(what, count, ext4.fault()),
    )
    with running_child(pretrain.module, arguments, tmp_path / "log", fault) as child:
        assert child.wait() == 2, child.output
    line = the_line(child.output)
    assert file in line and "is on a disk that is read-only: make it writable" in line
    assert f"resumes from the last whole checkpoint in {run}" in line
    ext4.mount_again()
    assert check_manifest(step_folder(run, 12)) is None and max(list_steps(run)) == 12
    with running_child(pretrain.module, arguments, tmp_path / "again.log") as child:
        assert child.wait() == 0, child.output
    assert "continues after step 12" in child.output and find_differences(run, whole) == []


@pytest.mark.slow
def test_read_only_disk_gives_clear_error(pretrain: Scenario, disk: Mount, tmp_path: Path) -> None:
    """Prevents a traceback for a disk mounted read-only."""
    run = disk("ro") / "run"
    with running_child(
        pretrain.module, [*pretrain.arguments, "--run", str(run)], tmp_path / "log"
    ) as child:
        assert child.wait() == 2, child.output
    assert f"{run}: is on a disk that is read-only" in the_line(child.output)


@pytest.mark.slow
def test_preparation_on_full_disk(disk: Mount, tmp_path: Path) -> None:
    """Prevents half a shard set, temporary folders left behind, and work that cannot resume."""
    folder = disk("size=260k")
    arguments = [
        "--source",
        "csl",
        "--input",
        str(ROOT / "assets/sample/summary/csl/train.tsv"),
        "--tokenizer",
        str(ROOT / "assets/tokenizer"),
        "--out",
        str(folder / "csl"),
        "--limit",
        "300",
        "--workers",
        "1",
    ]
    with running_child("data.prepare.__main__", arguments, tmp_path / "log") as child:
        assert child.wait() == 2, child.output
    assert "the disk is full: make room" in the_line(child.output) and str(folder) in the_line(
        child.output
    )
    assert not (folder / "csl").exists()
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    disk("size=64m")
    with running_child("data.prepare.__main__", arguments, tmp_path / "again.log") as child:
        assert child.wait() == 0, child.output
    assert ShardSet.open(folder / "csl", checksums=True).manifest["report"]["records"] == 300
    assert [path.name for path in folder.iterdir()] == ["csl"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "sizes"),
    [
        ("model.export --checkpoint {model} --format hf --out {out}", (0, 150, 300, 400)),
        ("model.export --checkpoint {model} --format gguf --out {out}.gguf", (0, 50, 250)),
        ("model.import_hf {model} --run {out}", (0, 150, 300)),
    ],
)
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_model_export_on_full_disk(
    command: str,
    sizes: tuple[int, ...],
    model: Path,
    disk: Mount,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Prevents a traceback, half a model that looks whole, and an error about a temporary file."""
    folder = disk("size=64m")
    arguments = shlex.split(command.format(model=model, out=folder / "out"))
    monkeypatch.setattr(sys, "argv", arguments)
    for kilobytes in (*sizes, 0):
        filler = folder / "room"
        filler.write_bytes(bytes(shutil.disk_usage(folder).free - (kilobytes << 10)))
        with pytest.raises(SystemExit) as exit_info:
            run_main(importlib.import_module(arguments[0]).main)
        error_output = capfd.readouterr().err
        assert exit_info.value.code == 2 and error_output.count("\n") == 1, error_output
        assert (
            re.fullmatch(
                rf"{folder}/out[^:]*: the disk is full: make room, then run the same command again",
                the_line(error_output).removeprefix("error: "),
            )
            and ".tmp" not in error_output
        ), error_output
        assert [path.name for path in folder.iterdir()] == ["room"]
        filler.unlink()
    with pytest.raises(SystemExit) as exit_info:
        run_main(importlib.import_module(arguments[0]).main)
    assert exit_info.value.code == 0


@pytest.mark.slow
def test_gguf_and_modelfile_are_written_together(
    model: Path, disk: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a GGUF file without its Modelfile on a full disk."""
    from model import export

    folder = disk("size=64m")
    arguments = [
        "export",
        "--checkpoint",
        str(model),
        "--format",
        "gguf",
        "--out",
        str(folder / "a.gguf"),
    ]
    monkeypatch.setattr(sys, "argv", arguments)
    export.main()
    before, (gguf, modelfile) = (
        shutil.disk_usage(folder).used,
        sorted(folder.iterdir(), reverse=True),
    )
    for path in (gguf, modelfile):
        path.unlink()
    (folder / "room").write_bytes(bytes(shutil.disk_usage(folder).free - before + 4096))
    with pytest.raises(OSError) as caught:
        export.main()
    assert describe_disk_error(caught.value) == f"{modelfile}: the disk is full: make room"
    assert [path.name for path in folder.iterdir()] == ["room"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("file/out.json", "is not a folder"), (".", "is a folder"), ("n" * 300, "too long")],
)
def test_unwritable_output_gives_one_line_error(
    path: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a traceback because of where `--json` points."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as exit_info:
        run_main(lambda: write_json(tmp_path / path, {}))
    assert exit_info.value.code == 2 and message in the_line(capsys.readouterr().err)


def test_internal_error_keeps_traceback() -> None:
    """Prevents internal errors from being reported as disk errors."""
    for error in (
        ValueError("x"),
        FileNotFoundError(2, "x"),
        OSError("some words"),
        ConnectionResetError(104, "x"),
    ):
        assert describe_disk_error(error) is None
    assert (
        describe_disk_error(OSError(28, os.strerror(28), "a")) == "a: the disk is full: make room"
    )
