"""A disk that is full, read-only or gone: one clear line, exit code 2, and what was whole before is still there."""

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
from train.metrics_log import MetricsLog


def the_line(said: str) -> str:
    """The one line that an invocation ends with."""
    lines = said.rstrip("\n").split("\n")
    assert (
        "Traceback" not in said
        and [line for line in lines if line.startswith("error: ")] == lines[-1:]
    ), said
    return lines[-1]


@pytest.mark.slow
def test_training_survives_full_disk(
    pretrain: Scenario, whole: Path, disk: Mount, tmp_path: Path
) -> None:
    """A page of traceback; half a checkpoint that keeps the disk full; the last good checkpoint lost with it."""
    # Two checkpoints find room on it, three do not.
    run = disk(f"size={int(2.6 * size(step_folder(whole, list_steps(whole)[-1])))}") / "run"
    arguments = [*pretrain.arguments, "--run", str(run)]
    with running_child(pretrain.module, arguments, tmp_path / "log") as child:
        assert child.wait() == 2, child.output
    line = the_line(child.output)
    assert (
        "the disk is full: make room" in line
        and f"goes on from the last whole checkpoint in {run}" in line
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
    """TensorBoard's thread printing a traceback of its own; a record lost in silence; a last line that spoils the file."""
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
    """The fault: in the fifth step somebody deletes the run."""

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
    """A folder with a checkpoint and nothing else, which no command can use."""
    run = tmp_path / "run"
    with running_child(
        pretrain.module, [*pretrain.arguments, "--run", str(run)], tmp_path / "log", Vanish(run)
    ) as child:
        assert child.wait() == 2, child.output
    assert f"{run} is gone" in the_line(child.output) and not run.exists()


@dataclass(frozen=True)
class TurnReadOnly:
    """The fault: after so many steps, or so many checkpoints that are not whole yet, the kernel finds an error on the disk
    and lets nobody write to it any more."""

    what: str
    count: int
    fault: Path

    def __call__(self) -> None:
        import train.trainer
        import train.training_state

        owner, name = (
            (train.trainer.Trainer, "train_step")
            if self.what == "step"
            else (train.training_state, "save_file")
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
    """A traceback of TensorBoard's; training that nobody can save; a last checkpoint that was said to be on the disk and is
    not there when the disk comes back."""
    run = ext4.folder / "run"
    arguments, fault = (
        [*pretrain.arguments, "--run", str(run)],
        TurnReadOnly(what, count, ext4.fault()),
    )
    with running_child(pretrain.module, arguments, tmp_path / "log", fault) as child:
        assert child.wait() == 2, child.output
    line = the_line(child.output)
    assert file in line and "is on a disk that is read-only: make it writable" in line
    assert f"goes on from the last whole checkpoint in {run}" in line
    ext4.mount_again()
    assert check_manifest(step_folder(run, 12)) is None and max(list_steps(run)) == 12
    with running_child(pretrain.module, arguments, tmp_path / "again.log") as child:
        assert child.wait() == 0, child.output
    assert "continues after step 12" in child.output and find_differences(run, whole) == []


@pytest.mark.slow
def test_read_only_disk_gives_clear_error(pretrain: Scenario, disk: Mount, tmp_path: Path) -> None:
    """A traceback for a disk that was mounted the other way."""
    run = disk("ro") / "run"
    with running_child(
        pretrain.module, [*pretrain.arguments, "--run", str(run)], tmp_path / "log"
    ) as child:
        assert child.wait() == 2, child.output
    assert f"{run}: is on a disk that is read-only" in the_line(child.output)


@pytest.mark.slow
def test_preparation_on_full_disk(disk: Mount, tmp_path: Path) -> None:
    """Half a shard set; a temporary folder that fills the disk for good; work that cannot be gone on with."""
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
    with running_child("data.prepare", arguments, tmp_path / "log") as child:
        assert child.wait() == 2, child.output
    assert "the disk is full: make room" in the_line(child.output) and str(folder) in the_line(
        child.output
    )
    assert not (folder / "csl").exists()
    assert not [path for path in folder.rglob("*") if path.suffix == ".tmp"]
    disk("size=64m")
    with running_child("data.prepare", arguments, tmp_path / "again.log") as child:
        assert child.wait() == 0, child.output
    assert ShardSet.open(folder / "csl", checksums=True).manifest["report"]["records"] == 300
    assert [path.name for path in folder.iterdir()] == ["csl"]


@pytest.mark.parametrize(
    ("command", "sizes"),
    [
        ("model.export --checkpoint {model} --format hf --out {out}", (0, 300, 600, 800)),
        ("model.export --checkpoint {model} --format gguf --out {out}.gguf", (0, 100, 500)),
        ("model.import_hf {model} --run {out}", (0, 300, 600)),
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
    """A traceback of a library; half a model under a name that a script takes for whole; a line about an unknown file."""
    folder = disk("size=64m")
    words = shlex.split(command.format(model=model, out=folder / "out"))
    monkeypatch.setattr(sys, "argv", words)
    for kilobytes in (*sizes, 0):
        room = folder / "room"
        room.write_bytes(bytes(shutil.disk_usage(folder).free - (kilobytes << 10)))
        with pytest.raises(SystemExit) as left:
            run_main(importlib.import_module(words[0]).main)
        said = capfd.readouterr().err
        assert left.value.code == 2 and said.count("\n") == 1, said
        assert (
            re.fullmatch(
                rf"{folder}/out[^:]*: the disk is full: make room, then run the same command again",
                the_line(said).removeprefix("error: "),
            )
            and ".tmp" not in said
        ), said
        assert [path.name for path in folder.iterdir()] == ["room"]
        room.unlink()
    with pytest.raises(SystemExit) as left:
        run_main(importlib.import_module(words[0]).main)
    assert left.value.code == 0


def test_gguf_and_modelfile_are_written_together(
    model: Path, disk: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole file beside none of Ollama's, where the disk was full just behind it."""
    from model import export

    folder = disk("size=64m")
    words = [
        "export",
        "--checkpoint",
        str(model),
        "--format",
        "gguf",
        "--out",
        str(folder / "a.gguf"),
    ]
    monkeypatch.setattr(sys, "argv", words)
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
    ("path", "words"),
    [("file/out.json", "no folder"), (".", "is a folder"), ("n" * 300, "too long")],
)
def test_unwritable_output_gives_one_line_error(
    path: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A traceback after an hour of evaluation because of where `--json` points."""
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as left:
        run_main(lambda: write_json(tmp_path / path, {}))
    assert left.value.code == 2 and words in the_line(capsys.readouterr().err)


def test_internal_error_keeps_traceback() -> None:
    """Every error taken for the disk's."""
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
