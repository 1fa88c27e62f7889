"""Files that are either whole or absent.

Everything the project keeps is written under a temporary name, synced to the disk, and renamed; a folder's manifest
(sizes and sha256 of all its files) is written last, so a folder with a manifest that verifies is a whole folder. A
manifest, and what else must not change unnoticed, is sealed: JSON that ends with a checksum of itself.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError, errno_of

MANIFEST = "manifest.json"
# Bytes that a file of facts may have: the largest real ones list the files of a corpus.
MAX_JSON_BYTES = 64 << 20
# Characters of a name in a manifest: no system has longer paths, and some raise for them.
MAX_NAME_LENGTH = 1000
CHECKSUM_KEY = "seal"


def fsync(path: Path) -> None:
    """Force a file or folder to the disk (for a folder: the names in it)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with name_path_in_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that becomes `path`, synced, when the block ends well.

    An existing `path` is replaced. When the block raises, nothing stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_path_in_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with name_path_in_errors(path):
            yield temporary
        os.chmod(temporary, 0o644)
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a whole file or nothing: temporary name, fsync, rename."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Give an error of the system in the block a name that the user knows.

    That is `path` where the error names no file (a failed write does not) or a temporary one that is to become `path`; what
    it names in a temporary folder is named in `path`.
    """
    try:
        yield
    except Exception as error:
        number = errno_of(error)
        if number is not None and getattr(error, "errno", None) is None:
            # A library's words for it, which a name would replace.
            raise OSError(number, os.strerror(number), str(path)) from error
        if not isinstance(error, OSError):
            raise
        if error.filename is None or isinstance(error.filename, int):
            error.filename = str(path)
        else:
            temporary = rf"^.*?\.{re.escape(path.name)}\.\w+\.tmp(?=/|$)"
            error.filename = re.sub(temporary, lambda _: str(path), os.fsdecode(error.filename))
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomic(path, _dump_json(value))


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def write_checksummed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a dict as JSON that ends with a checksum of itself, atomically."""
    write_atomic(path, _dump_json(_with_checksum(value)))


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, CHECKSUM_KEY: hashlib.sha256(_dump_json(value).encode()).hexdigest()}


def read_checksummed_json(
    path: Path, advice: str = "", max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Read what `write_sealed` wrote, without the checksum. UserError, which ends with `advice`, if any byte has changed."""
    value = read_json(path, max_bytes)
    if not isinstance(value, dict) or CHECKSUM_KEY not in value:
        raise UserError(
            f"{path} has no checksum of itself: it is damaged, or of an earlier version of this program{advice}"
        )
    stored_checksum = value.pop(CHECKSUM_KEY)
    # Written anew and compared as bytes, so that not even a blank can change.
    if (
        _dump_json(_with_checksum(value)).encode() != path.read_bytes()
        or stored_checksum != _with_checksum(value)[CHECKSUM_KEY]
    ):
        raise UserError(f"{path} is damaged (it differs from its own checksum){advice}")
    return value


def read_json(path: Path, limit: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most `limit` bytes; a missing, broken or larger one is a `UserError` that names it."""
    try:
        return json.loads(read_limited(path, limit).decode("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The bytes of a file that has to be small. UserError if it is not: a stranger's file may be of any size."""
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(
            f"{path} is larger than {max_bytes >> 20} MB, which such a file never is: it is not what it should be"
        )
    return data


def sha256_file(path: Path) -> str:
    """The hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256_stream(file)
        )


def _sha256_stream(file: Any) -> str:
    # Python 3.10 has no hashlib.file_digest.
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write `manifest.json`: the size and sha256 of every file below the folder, and `metadata` beside them."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder) != Path(MANIFEST)
    }
    write_checksummed_json(folder / MANIFEST, {**(metadata or {}), "files": files})


def check_manifest(folder: Path, *, verify_checksums: bool = True) -> str | None:
    """What is wrong with a folder that should have a manifest, in words, or None if all of it is as written.

    With `checksums=False` only presence and sizes are compared, which costs no reading.
    """
    try:
        files = read_json(folder / MANIFEST)["files"]
        expected = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()
        }
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError):
        return f"{folder / MANIFEST} is not a manifest"
    if outside := next(
        (name for name in expected if Path(name).is_absolute() or ".." in Path(name).parts), None
    ):
        return f"{folder / MANIFEST} names a file outside its folder: {outside}"
    try:
        read_checksummed_json(folder / MANIFEST)
    except UserError as error:
        return str(error)
    for name, (size, digest) in expected.items():
        path = folder / name
        if len(name) > MAX_NAME_LENGTH or not path.is_file():
            return f"{str(path)[:MAX_NAME_LENGTH]} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        if verify_checksums and sha256_file(path) != digest:
            return f"{path} is damaged (sha256 differs from the manifest)"
    return None


@contextlib.contextmanager
def atomic_folder(target: Path, metadata: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that becomes `target`, with a manifest of `metadata`, when the block ends well.

    An existing `target` is replaced. `metadata` may be filled inside the block. When the block raises, nothing stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name keeps the target's own, so that whoever finds one after a crash knows what it was; names
    # with a dot in front are never taken for checkpoints or shard sets.
    with name_path_in_errors(target):
        temporary = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        )
    try:
        with name_path_in_errors(target):
            yield temporary
            os.chmod(temporary, 0o755)
            write_manifest(temporary, metadata)
            for path in sorted(temporary.rglob("*"), reverse=True):
                fsync(path)
            fsync(temporary)
        if target.exists():
            old = Path(
                tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old")
            )
            os.replace(target, old / target.name)
            os.replace(temporary, target)
            shutil.rmtree(old)
        else:
            os.replace(temporary, target)
        fsync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_temporary_files(folder: Path) -> None:
    """Delete temporary files and folders that a killed process left in `folder`."""
    for path in folder.glob(".*"):
        if path.suffix in {".tmp", ".old"}:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
