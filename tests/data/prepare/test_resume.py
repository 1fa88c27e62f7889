"""Interrupted and repeated preparations give the bytes of an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from common.errors import UserError
from common.locks import exclusive_lock
from data import sequences
from data.kinds import documents
from data.prepare import pipeline, provenance, worker, write_shards
from data.prepare.__main__ import main as prepare
from data.prepare.options import CleanOptions, PrepareOptions
from data.shards import ShardSet
from tests.data.prepare.conftest import COMMAND, contents, document, run
from tests.helpers.prepare import prepare_source


def fail_with_full_disk(*_: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_output_is_identical_for_any_workers_and_after_sigkill(
    tokenizer: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a shard set that depends on the workers or on a kill -9, and orphaned workers."""
    import psutil

    texts = [document(seed, 500) for seed in range(600)]
    for name, part in (("a.jsonl", texts[:350]), ("b.jsonl", texts[325:])):
        rows = [orjson.dumps({"text": text}) + b"\n" for text in part]
        (tmp_path / name).write_bytes(b"".join(rows) + b"[]\n")

    def arguments(out: str, workers: int) -> list[str]:
        inputs = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
        options = ["--tokenizer", str(tokenizer), "--out", str(tmp_path / out)]
        return ["--source", "jsonl", "--input", *inputs, *options, "--workers", str(workers)]

    with monkeypatch.context() as patch:
        # As in COMMAND.
        patch.setattr(worker, "UNIT_BYTES", 1 << 16)
        patch.setattr(sequences.SequenceWriter.__init__, "__defaults__", (1 << 17,))
        patch.setattr(sys, "argv", ["data.prepare", *arguments("one", 1)])
        prepare()
    expected = contents(tmp_path / "one")

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments("killed", 2)],
        cwd=root,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    units = tmp_path / ".killed.work" / "parts"
    deadline = time.monotonic() + 60
    while len(list(units.glob("0*/manifest.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "killed").exists()
    assert 3 <= len(list(units.glob("0*/manifest.json"))) < 14
    assert run(arguments("killed", 2), root).returncode == 0
    assert contents(tmp_path / "killed") == expected
    assert not units.parent.exists()


@pytest.mark.slow
def test_finished_units_are_reused_and_changed_inputs_redone(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents hours of work being repeated after an interruption, and outdated units."""
    monkeypatch.setattr(worker, "UNIT_BYTES", 20_000)
    processed: list[int] = []
    process = worker.PrepareWorker.process

    def record_and_process(self: worker.PrepareWorker, unit: worker.WorkUnit) -> Any:
        processed.append(unit.index)
        return process(self, unit)

    monkeypatch.setattr(worker.PrepareWorker, "process", record_and_process)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(write_shards, "_write_splits", interrupt)
        prepare_source(*arguments)
    assert len(processed) > 5
    assert not (tmp_path / "out").exists()
    processed.clear()
    # Only the last line is corrected, so only the last unit is encoded again.
    corrected = orjson.dumps({"text": document(999)}) + b"\n"
    corpus.write_bytes(corpus.read_bytes().replace(b"{broken\n", corrected))
    report = prepare_source(*arguments)
    assert len(processed) == 1
    assert report["kept"] == 201 and report["quarantined"] == 0
    fresh = prepare_source("jsonl", [str(corpus)], tmp_path / "fresh", tokenizer, PrepareOptions())
    assert fresh["tokens"] == report["tokens"]
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


@pytest.mark.slow
def test_repeat_is_no_op_and_different_arguments_are_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a finished set, another preparation or a user's files being overwritten."""
    out = tmp_path / "out"
    report = prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    same = PrepareOptions(workers=2, quarantine_share=0.5)
    assert prepare_source("jsonl", [str(corpus)], out, tokenizer, same) == report
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    other = PrepareOptions.model_validate({"dedup": {"near": False}})
    with pytest.raises(UserError, match=r"differs: options\.dedup\.near.*another --out"):
        prepare_source("jsonl", [str(corpus)], out, tokenizer, other)
    corpus.write_bytes(corpus.read_bytes()[:-20])
    with pytest.raises(UserError, match="differs: inputs"):
        prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a shard set"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "other", tokenizer, PrepareOptions())
    assert (tmp_path / "other" / "file").read_text() == "mine"


@pytest.mark.slow
def test_interrupted_work_with_other_arguments_is_not_mixed(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a set whose first half is cleaned by other options than its second."""
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(write_shards, "_write_splits", fail_with_full_disk)
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    changed = PrepareOptions.model_validate({"clean": {"minimum_characters": 30}})
    with pytest.raises(UserError, match=r"options\.clean\.minimum_characters.*delete it"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, changed)


def test_concurrent_preparation_is_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents two processes that write the same shard set."""

    def prepare_again(*_: Any) -> None:
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())

    monkeypatch.setattr(pipeline, "_process_units", prepare_again)
    with pytest.raises(UserError, match="another process is preparing it"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())


def test_only_work_that_nobody_does_is_deleted(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Prevents a process that uses a set from deleting the work of one that replaces it."""
    out, work = tmp_path / "out", tmp_path / ".out.work"
    prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    assert not work.exists()
    with exclusive_lock(work / "lock"):
        prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
        assert work.exists()
    prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    assert not work.exists()


@pytest.mark.slow
def test_units_of_other_code_version_are_not_mixed(
    corpus: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents a corpus that is half cleaned by an older version of the rules."""
    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())

    def reject_by_new_rule(text: str, options: CleanOptions) -> str | None:
        return "new_rule" if "第7" in text else None

    for is_updated in (False, True):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(write_shards, "_write_splits", fail_with_full_disk)
            if is_updated:
                patch.setattr(provenance, "PREPARE_VERSION", provenance.PREPARE_VERSION + 1)
                patch.setattr(documents, "rejection_reason", reject_by_new_rule)
            prepare_source(*arguments)
    capsys.readouterr()
    assert prepare_source(*arguments)["dropped"] == {
        "exact_duplicate": 10,
        "near_duplicate": 5,
        "too_short": 3,
    }
    assert "another version of this program: starting over" in capsys.readouterr().out
    fingerprint = ShardSet.open(tmp_path / "out").fingerprint
    monkeypatch.setattr(provenance, "PREPARE_VERSION", provenance.PREPARE_VERSION + 1)
    with pytest.raises(UserError, match=r"what differs: version\); delete it"):
        prepare_source(*arguments)
    prepare_source(*arguments[:2], tmp_path / "new", *arguments[3:])
    assert ShardSet.open(tmp_path / "new").fingerprint == fingerprint
