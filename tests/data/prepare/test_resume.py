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
from data.prepare import write_shards as assemble_module
from data.prepare import worker as parts_module
from data.prepare import pipeline as prepare_module
from data.prepare.pipeline import PrepareOptions, prepare
from data.shards import ShardSet
from tests.data.prepare.conftest import COMMAND, contents, document, run


@pytest.mark.slow
def test_workers_and_kill_9_change_no_byte(tokenizer: Path, tmp_path: Path, root: Path) -> None:
    """Two workers, killed -9 in the middle and run again, make what one made at a stretch; the workers die with it."""
    import psutil

    texts = [document(seed, 500) for seed in range(1200)]
    for name, some in (("a.jsonl", texts[:700]), ("b.jsonl", texts[650:])):
        (tmp_path / name).write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in some) + b"[]\n")

    def arguments(out: str, workers: int) -> list[str]:
        inputs = ["--source", "jsonl", "--input", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
        return [*inputs, "--tokenizer", str(tokenizer), "--out", str(tmp_path / out), "--workers", str(workers)]

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
def test_finished_parts_are_not_made_again_and_changed_inputs_are(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "PART_BYTES", 20_000)
    made: list[int] = []
    whole = parts_module.Worker.process

    def counted(worker: parts_module.Worker, part: parts_module.Part) -> Any:
        made.append(part.index)
        return whole(worker, part)

    monkeypatch.setattr(parts_module.Worker, "process", counted)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(assemble_module, "_copy", interrupted)
        prepare(*arguments)
    assert len(made) > 5
    assert not (tmp_path / "out").exists()
    made.clear()
    # Mended in its last line: only the last part is made again.
    corpus.write_bytes(corpus.read_bytes().replace(b"{broken\n", orjson.dumps({"text": document(999)}) + b"\n"))
    report = prepare(*arguments)
    assert len(made) == 1
    assert report["kept"] == 201 and report["quarantined"] == 0
    fresh = prepare("jsonl", [str(corpus)], tmp_path / "fresh", tokenizer, PrepareOptions())
    assert fresh["tokens"] == report["tokens"]
    assert contents(tmp_path / "fresh") == contents(tmp_path / "out")


def test_the_same_again_does_nothing_and_another_is_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    report = prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions(workers=2, quarantine_share=0.5)) == report
    assert "already prepared" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(UserError, match=r"differs: options\.dedup\.near.*another --out"):
        prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions.model_validate({"dedup": {"near": False}}))
    corpus.write_bytes(corpus.read_bytes()[:-20])
    with pytest.raises(UserError, match="differs: inputs"):
        prepare("jsonl", [str(corpus)], out, tokenizer, PrepareOptions())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    with pytest.raises(UserError, match="exists and is no shard set"):
        prepare("jsonl", [str(corpus)], tmp_path / "other", tokenizer, PrepareOptions())
    assert (tmp_path / "other" / "file").read_text() == "mine"


def test_interrupted_work_with_other_arguments_is_named_not_mixed(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(assemble_module, "_copy", full)
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    changed = PrepareOptions.model_validate({"clean": {"minimum_characters": 30}})
    with pytest.raises(UserError, match=r"options\.clean\.minimum_characters.*delete it"):
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, changed)


def test_two_at_once_are_refused(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nested(*_: Any) -> None:
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())

    monkeypatch.setattr(prepare_module, "_make_parts", nested)
    with pytest.raises(UserError, match="another process is preparing it"):
        prepare("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())


def test_parts_that_other_code_made_are_not_mixed_with_new_ones(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half a corpus cleaned by last month's rules and half by today's, because an update came between."""
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    arguments = ("jsonl", [str(corpus)], tmp_path / "out", tokenizer, PrepareOptions())
    for updated in (False, True):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(assemble_module, "_copy", full)
            if updated:
                patch.setattr(prepare_module, "CODE", prepare_module.CODE[1:])
                patch.setattr(parts_module, "fault", lambda text, options: "other_rule" if "第7" in text else None)
            prepare(*arguments)
    capsys.readouterr()
    assert prepare(*arguments)["dropped"] == {"exact_duplicate": 10, "near_duplicate": 5, "too_short": 3}
    assert "another version of this code: its parts are made again" in capsys.readouterr().out
    before = ShardSet.open(tmp_path / "out").fingerprint
    monkeypatch.setattr(prepare_module, "CODE", prepare_module.CODE[1:])
    prepare(*arguments)
    assert "another version of this code did it" in capsys.readouterr().out
    prepare(*arguments[:2], tmp_path / "new", *arguments[3:])
    assert ShardSet.open(tmp_path / "new").fingerprint == before
