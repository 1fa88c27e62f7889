"""Tests of atomic files and folders; each docstring names the damage that the test prevents."""

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import (
    MANIFEST,
    atomic_folder,
    check_manifest,
    read_json,
    remove_temporary_files,
    sha256_file,
    write_atomic,
    write_json,
    write_manifest,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set" / "below").mkdir(parents=True)
    (tmp_path / "set" / "a").write_bytes(b"first")
    (tmp_path / "set" / "below" / "b").write_bytes(b"second")
    write_manifest(tmp_path / "set", {"kind": "test"})
    return tmp_path / "set"


def test_write_atomic_replaces_file_with_readable_permissions(tmp_path: Path) -> None:
    """Prevents mkstemp's private mode 0600 staying on files that other users read."""
    write_atomic(tmp_path / "deep" / "f", "旧")
    write_atomic(tmp_path / "deep" / "f", b"new")
    assert (tmp_path / "deep" / "f").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "deep" / "f").stat().st_mode) == 0o644
    # What the user made private stays so.
    (tmp_path / "deep" / "f").chmod(0o600)
    write_atomic(tmp_path / "deep" / "f", b"new")
    assert stat.S_IMODE((tmp_path / "deep" / "f").stat().st_mode) == 0o600
    code = "import common.files as f, pathlib, sys; f.write_atomic(pathlib.Path(sys.argv[1]), b'')"
    subprocess.run([sys.executable, "-c", code, tmp_path / "g"], umask=0o077, check=True)
    assert stat.S_IMODE((tmp_path / "g").stat().st_mode) == 0o600
    (tmp_path / "g").unlink()
    assert names(tmp_path / "deep") == ["f"]


def test_failed_write_leaves_only_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a full disk (fsync fails) from destroying the old file."""
    write_atomic(tmp_path / "f", "old")

    def fail_fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail_fsync)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "f", "new")
    assert (tmp_path / "f").read_text() == "old" and names(tmp_path) == ["f"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["write_atomic(p / 'f', b'new' * 100)", "atomic_folder"])
def test_sigkill_leaves_old_or_new_file(tmp_path: Path, target: str) -> None:
    """Prevents a kill between any two steps from leaving half a file under the real name."""
    write_atomic(tmp_path / "f", "old")
    with atomic_folder(tmp_path / "d") as temporary:
        (temporary / "x").write_text("old")
    if target == "atomic_folder":
        target = "\n    with atomic_folder(p / 'd') as t: (t / 'x').write_bytes(b'new' * 100)"
    # The process kills itself at the n-th disk operation, for every n until it completes.
    script = f"""
import os, signal, sys
from pathlib import Path
from common.files import atomic_folder, write_atomic
p, n = Path(sys.argv[1]), int(sys.argv[2])
def counted(real):
    def call(*a, **k):
        global n
        n -= 1
        if n == 0: os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return call
for name in ('fsync', 'replace', 'chmod'): setattr(os, name, counted(getattr(os, name)))
if True: {target}
"""
    num_kills = 0
    for step in range(1, 40):
        process = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path), str(step)], cwd=Path(__file__).parents[2]
        )
        # A replaced folder has no name between the two renames, until this gives it back.
        remove_temporary_files(tmp_path)
        assert names(tmp_path) == ["d", "f"]
        assert (tmp_path / "f").read_bytes() in (b"old", b"new" * 100)
        assert check_manifest(tmp_path / "d") is None
        assert (tmp_path / "d" / "x").read_bytes() in (b"old", b"new" * 100)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        num_kills += 1
    assert process.returncode == 0 and num_kills >= 3


def test_json_round_trips_chinese_unescaped(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"名": ["值", 1]})
    assert read_json(tmp_path / "f.json") == {"名": ["值", 1]} and "名" in (
        tmp_path / "f.json"
    ).read_text("utf-8")


def test_invalid_json_gives_one_line_error_naming_file(tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b'{"a": ')
    (tmp_path / "binary").write_bytes(b"\xff\xfe{}")
    for name in ("bad", "binary", "absent", "."):
        with pytest.raises(UserError) as caught:
            read_json(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_sha256_of_multiple_blocks(tmp_path: Path) -> None:
    import hashlib

    data = os.urandom((1 << 20) + 5)
    (tmp_path / "f").write_bytes(data)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_sha256_fallback_matches_file_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents Python 3.10 from computing other checksums than later versions."""
    import hashlib

    (tmp_path / "f").write_bytes(b"x" * ((1 << 20) + 5))
    expected = sha256_file(tmp_path / "f")
    monkeypatch.delattr(hashlib, "file_digest", raising=False)
    assert sha256_file(tmp_path / "f") == expected


def test_intact_folder_verifies_and_keeps_manifest_fields(folder: Path) -> None:
    assert check_manifest(folder) is None
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["kind"] == "test" and sorted(manifest["files"]) == ["a", "below/b"]


@pytest.mark.parametrize(
    ("damage", "message", "needs_reading"),
    [
        (lambda folder: (folder / "a").unlink(), "missing", False),
        (lambda folder: (folder / "a").write_bytes(b"firs"), "has 4 bytes instead of 5", False),
        (lambda folder: (folder / "below" / "b").write_bytes(b"sec0nd"), "damaged", True),
        (lambda folder: (folder / MANIFEST).write_text('{"files": 3}'), "is not a manifest", False),
        (
            lambda folder: (folder / MANIFEST).write_text('{"files": {"a": {}}}'),
            "is not a manifest",
            False,
        ),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "is not a manifest", False),
        (
            lambda folder: (folder / MANIFEST).write_text(
                '{"files": {"a": {"bytes": 1e999, "sha256": ""}}}'
            ),
            "is not a manifest",
            False,
        ),
        (lambda folder: (folder / MANIFEST).unlink(), "does not exist", False),
        (
            lambda folder: (folder / MANIFEST).write_text(
                '{"files": {"../x": {"bytes": 1, "sha256": ""}}}'
            ),
            "outside",
            False,
        ),
    ],
)
def test_damaged_folder_never_verifies(
    folder: Path, damage: Callable[[Path], object], message: str, needs_reading: bool
) -> None:
    damage(folder)
    assert message in (check_manifest(folder) or "")
    quick = check_manifest(folder, verify_checksums=False)
    assert quick is None if needs_reading else message in (quick or "")


def test_atomic_folder_appears_complete_with_manifest(tmp_path: Path) -> None:
    metadata: dict[str, object] = {}
    with atomic_folder(tmp_path / "out", metadata) as temporary:
        (temporary / "x").write_bytes(b"1")
        assert not (tmp_path / "out").exists() and temporary.name.startswith(".")
        metadata["count"] = 7
    assert (
        check_manifest(tmp_path / "out") is None
        and read_json(tmp_path / "out" / MANIFEST)["count"] == 7
    )
    assert names(tmp_path) == ["out"] and stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_exception_in_atomic_folder_keeps_old_folder(tmp_path: Path) -> None:
    """Prevents a failed preparation (or Ctrl-C) from destroying the last good one."""
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "x").write_text("old")
    for error in (UserError, KeyboardInterrupt):
        with pytest.raises(error), atomic_folder(tmp_path / "out") as temporary:
            (temporary / "x").write_text("new")
            raise error("stop")
    assert (tmp_path / "out" / "x").read_text() == "old" and names(tmp_path) == ["out"]


def test_failed_rename_keeps_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a full disk between the two renames from taking the old folder away."""
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "old").write_text("old")
    real = os.replace

    def fail_for_new_folder(source: Path, target: Path) -> None:
        # Not the files within it, such as the manifest.
        if Path(source).suffix == ".tmp" and Path(source).is_dir():
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail_for_new_folder)
    with pytest.raises(OSError, match="No space"), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "new").write_text("new")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "old").is_file()


def test_replacing_folder_removes_stale_files(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / name).write_text(name)
    assert names(tmp_path / "out") == [MANIFEST, "new"] and names(tmp_path) == ["out"]


def test_only_leftovers_of_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    # The last one is a checkpoint that rotation was deleting.
    for name in (".a.123.tmp/x", ".b.456.old/b", ".step-1.old/config"):
        (tmp_path / name).mkdir(parents=True)
    for name in (".f.1.tmp", ".hidden", ".f.part", "real.tmp"):
        (tmp_path / name).write_text("x")
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == [".f.part", ".hidden", "b", "real.tmp"]
