"""Interrupted, killed and repeated preparations: the same bytes as one at a stretch, other arguments never mixed."""

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
from data.prepare import pipeline as prepare_module
from data.prepare import provenance
from data.prepare import worker as parts_module
from data.prepare import write_shards as assemble_module
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_source
from data.shards import ShardSet
from tests.data.prepare.conftest import COMMAND, contents, document, run


@pytest.mark.slow
def test_output_is_identical_for_any_workers_and_after_sigkill(
    tokenizer: Path, tmp_path: Path, root: Path
) -> None:
    """Two workers, killed -9 in the middle and run again, make what one made at a stretch; the workers die with it."""
    import psutil

    texts = [document(seed, 500) for seed in range(1200)]
    for name, some in (("a.jsonl", texts[:700]), ("b.jsonl", texts[650:])):
        (tmp_path / name).write_bytes(
            b"".join(orjson.dumps({"text": text}) + b"\n" for text in some) + b"[]\n"
        )

    def arguments(out: str, workers: int) -> list[str]:
        inputs = [
            "--source",
            "jsonl",
            "--input",
            str(tmp_path / "a.jsonl"),
            str(tmp_path / "b.jsonl"),
        ]
        return [
            *inputs,
            "--tokenizer",
            str(tokenizer),
            "--out",
            str(tmp_path / out),
            "--workers",
            str(workers),
        ]

    assert run(arguments("one", 1), root).returncode == 0
    wanted = contents(tmp_path / "one")

    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments("killed", 2)],
        cwd=root,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    parts = tmp_path / ".killed.work" / "parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("0*/manifest.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert children
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (tmp_path / "killed").exists()
    before = {path: path.stat().st_mtime_ns for path in parts.glob("0*/manifest.json")}
    assert 3 <= len(before) < 14
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())
    assert run(arguments("killed", 2), root).returncode == 0
    assert contents(tmp_path / "killed") == wanted
    assert not parts.parent.exists()


@pytest.mark.slow
def test_finished_units_are_reused_and_changed_inputs_redone(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "UNIT_BYTES", 20_000)
    made: list[int] = []
    whole = parts_module.PrepareWorker.process

    def counted(worker: parts_module.PrepareWorker, part: parts_module.WorkUnit) -> Any:
        made.append(part.index)
        return whole(worker, part)

    monkeypatch.setattr(parts_module.PrepareWorker, "process", counted)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assemble_module, "_write_splits", interrupted)
        prepare_source(*arguments)
    assert len(made) > 5
    assert not (tmp_path / "out").exists()
    made.clear()
    # Mended in its last line: only the last part is made again.
    corpus.write_bytes(
        corpus.read_bytes().replace(b"{broken\n", orjson.dumps({"text": document(999)}) + b"\n")
    )
    report = prepare_source(*arguments)
    assert len(made) == 1
    assert report["kept"] == 201 and report["quarantined"] == 0
    fresh = prepare_source("jsonl", [str(corpus)], tmp_path / "fresh", tokenizer, PrepareOptions())
    assert fresh["tokens"] == report["tokens"]
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


def test_repeat_is_no_op_and_different_arguments_are_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert (
        prepare_source(
            "jsonl", [str(corpus)], out, tokenizer, PrepareOptions(workers=2, quarantine_share=0.5)
        )
        == report
    )
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match=r"differs: options\.dedup\.near.*another --out"):
        prepare_source(
            "jsonl",
            [str(corpus)],
            out,
            tokenizer,
            PrepareOptions.model_validate({"dedup": {"near": False}}),
        )
    corpus.write_bytes(corpus.read_bytes()[:-20])
    with pytest.raises(UserError, match="differs: inputs"):
        prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is not a shard set"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "other", tokenizer, PrepareOptions())
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_interrupted_work_with_other_arguments_is_not_mixed(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(assemble_module, "_write_splits", full)
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    changed = PrepareOptions.model_validate({"clean": {"minimum_characters": 30}})
    with pytest.raises(UserError, match=r"options\.clean\.minimum_characters.*delete it"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, changed)


def test_concurrent_preparation_is_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nested(*_: Any) -> None:
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())

    monkeypatch.setattr(prepare_module, "_process_units", nested)
    with pytest.raises(UserError, match="another process is preparing it"):
        prepare_source("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())


def test_units_of_other_code_version_are_not_mixed(
    corpus: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Half a corpus cleaned by last month's rules and half by today's, because an update came between."""

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    for updated in (False, True):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(assemble_module, "_write_splits", full)
            if updated:
                patch.setattr(provenance, "PREPARE_VERSION", provenance.PREPARE_VERSION + 1)
                patch.setattr(
                    parts_module,
                    "rejection_reason",
                    lambda text, options: "other_rule" if "第7" in text else None,
                )
            prepare_source(*arguments)
    capsys.readouterr()
    assert prepare_source(*arguments)["dropped"] == {
        "exact_duplicate": 10,
        "near_duplicate": 5,
        "too_short": 3,
    }
    assert "another version of this program: starting over" in capsys.readouterr().out
    before = ShardSet.open(tmp_path / "out").fingerprint
    monkeypatch.setattr(provenance, "PREPARE_VERSION", provenance.PREPARE_VERSION + 1)
    with pytest.raises(UserError, match=r"what differs: version\); delete it"):
        prepare_source(*arguments)
    prepare_source(*arguments[:2], tmp_path / "new", *arguments[3:])
    assert ShardSet.open(tmp_path / "new").fingerprint == before
