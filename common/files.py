"""Atomic files and folders, manifests, and JSON with a checksum.

Files and folders are written under a temporary name, synced to the disk and renamed. The manifest
of a folder (size and sha256 of every file) is written last, so a folder whose manifest verifies is
complete. Manifests and other state files are JSON that ends with its own checksum.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError, errno_of

MANIFEST = "manifest.json"
# Limit of a JSON file; the largest real ones list the files of a corpus.
MAX_JSON_BYTES = 64 << 20
# Number of characters of a path that the message about a missing file of a manifest shows.
MAX_PATH_SHOWN = 1000
CHECKSUM_KEY = "seal"
# The permissions that the user takes from new files; to read them is to set them.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def fsync(path: Path) -> None:
    """Sync to the disk: the contents of a file, or the directory entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with name_path_in_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file that replaces `path` when the block succeeds.

    If the block raises, the temporary file is deleted and `path` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with name_path_in_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        with name_path_in_errors(path):
            yield temporary
        # mkstemp makes files that only their owner can read.
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_UMASK
        os.chmod(temporary, mode)
        # Synced before the rename, so that a power cut cannot leave an empty file under `path`.
        fsync(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # A rename is durable only when its folder is synced.
    fsync(path.parent)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically: temporary name, fsync, rename."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def name_path_in_errors(path: Path) -> Iterator[None]:
    """Put `path` into the `filename` of system errors raised in the block.

    An error that names another file keeps that name, unless it is the temporary file or folder that
    will become `path`.
    """
    try:
        yield
    except Exception as error:
        error_number = errno_of(error)
        if error_number is not None and getattr(error, "errno", None) is None:
            # NumPy and safetensors put the number only into the message; raise an OSError that has
            # `errno` and `filename`.
            raise OSError(error_number, os.strerror(error_number), str(path)) from error
        if not isinstance(error, OSError):
            raise
        if error.filename is None or isinstance(error.filename, int):
            error.filename = str(path)
        else:
            pattern = rf"^.*?\.{re.escape(path.name)}\.\w+\.tmp(?=/|$)"
            # A function as replacement, because a string would be searched for escapes such as \1.
            error.filename = re.sub(pattern, lambda _: str(path), os.fsdecode(error.filename))
        raise


def write_json(path: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically."""
    write_atomic(path, _dump_json(value))


def _dump_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def write_checksummed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a dict as JSON that ends with its own checksum, atomically."""
    write_atomic(path, _dump_json(_with_checksum(value)))


def _with_checksum(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` with the hex sha256 of its JSON as the last key."""
    return {**value, CHECKSUM_KEY: hashlib.sha256(_dump_json(value).encode()).hexdigest()}


def read_checksummed_json(
    path: Path, advice: str = "", max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Read a file written by `write_checksummed_json`; return its value without the checksum.

    Raises UserError if the file is missing, larger than `max_bytes` or, with `advice` at the end of
    the message, if any byte has changed.
    """
    # Read once: between two reads another process may replace the file.
    value, content = _load_json(path, max_bytes)
    if not isinstance(value, dict) or CHECKSUM_KEY not in value:
        raise UserError(
            f"{path} has no checksum of itself: it is damaged, or was written by an earlier "
            f"version of this program{advice}"
        )
    del value[CHECKSUM_KEY]
    # Compare the whole file with the one that would be written, not only the checksums: that also
    # detects changes of white space.
    try:
        expected_bytes = _dump_json(_with_checksum(value)).encode()
    except UnicodeEncodeError:  # an escaped lone surrogate, which is never written
        expected_bytes = None
    if content != expected_bytes:
        raise UserError(f"{path} is damaged (it differs from its own checksum){advice}")
    return value


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Read a JSON file of at most `max_bytes` bytes.

    Raises UserError, naming the file, if it is missing, unreadable, not JSON or larger.
    """
    value, _ = _load_json(path, max_bytes)
    return value


def _load_json(path: Path, max_bytes: int) -> tuple[Any, bytes]:
    """Return the value of a JSON file, and its bytes; errors are those of `read_json`."""
    try:
        content = read_limited(path, max_bytes)
        return json.loads(content.decode("utf-8")), content
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


def read_limited(path: Path, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the bytes of a file that must be small.

    Raises UserError if it is larger than `max_bytes`: an untrusted file may have any size.
    `max_bytes` has to be a multiple of 1 MiB, because the message gives whole ones.
    """
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(
            f"{path} is larger than {max_bytes >> 20} MB, the limit for such a file: "
            "it is damaged, or the wrong file"
        )
    return data


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        return _sha256_stream(file)


def _sha256_stream(file: Any) -> str:
    """Return the hex sha256 of a binary file, as hashlib.file_digest does since Python 3.11."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path, metadata: dict[str, Any] | None = None) -> None:
    """Write `manifest.json` with `metadata` and the size and sha256 of every file in the folder."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder) != Path(MANIFEST)
    }
    write_checksummed_json(folder / MANIFEST, {**(metadata or {}), "files": files})


def check_manifest(folder: Path, *, verify_checksums: bool = True) -> str | None:
    """Return a message about the first difference between a folder and its manifest, or None.

    With `verify_checksums=False` only names and sizes are compared, and the files are not read.
    Files that are not in the manifest are ignored.
    """
    # Read at first without verifying the manifest's own checksum: a file that is not a manifest at
    # all, or that names files outside the folder, gets a message of its own rather than "damaged".
    try:
        files = read_json(folder / MANIFEST)["files"]
        expected = {
            name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()
        }
    except UserError as error:
        return str(error)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return f"{folder / MANIFEST} is not a manifest"
    for name in expected:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            return f"{folder / MANIFEST} names a file outside its folder: {name}"
    try:
        read_checksummed_json(folder / MANIFEST)
    except UserError as error:
        return str(error)
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not _is_file(path):
            return f"{str(path)[:MAX_PATH_SHOWN]} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size} bytes instead of {size}"
        if verify_checksums and sha256_file(path) != sha256:
            return f"{path} is damaged (sha256 differs from the manifest)"
    return None


def _is_file(path: Path) -> bool:
    """Return whether a path is a file, also for a name longer than the file system allows."""
    try:
        return path.is_file()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


@contextlib.contextmanager
def atomic_folder(target: Path, metadata: dict[str, Any] | None = None) -> Iterator[Path]:
    """Yield a temporary folder that replaces `target` when the block succeeds.

    A manifest is added, with `metadata`, which the block may still fill. If the block raises, the
    temporary folder is deleted and `target` is unchanged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary name contains the name of the target, to recognize it after a crash. The leading
    # dot keeps it from being taken for a checkpoint or a shard set.
    with name_path_in_errors(target):
        temporary = Path(
            tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
        )
    try:
        with name_path_in_errors(target):
            yield temporary
            # mkdtemp makes folders that only their owner can read.
            os.chmod(temporary, 0o777 & ~_UMASK)
            write_manifest(temporary, metadata)
            # Sorted in reverse, the files of a folder come before the folder.
            for path in sorted(temporary.rglob("*"), reverse=True):
                fsync(path)
            fsync(temporary)
        if target.exists():
            # os.replace cannot replace a folder that is not empty: move the earlier one away first.
            backup = Path(
                tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".old")
            )
            os.replace(target, backup / target.name)
            try:
                os.replace(temporary, target)
            except BaseException:
                os.replace(backup / target.name, target)
                backup.rmdir()
                raise
            shutil.rmtree(backup)
        else:
            os.replace(temporary, target)
        fsync(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_temporary_files(folder: Path, pattern: str = ".*") -> None:
    """Delete temporary files and folders that a killed process left in `folder`.

    `pattern` limits which names are looked at. A folder that `atomic_folder` had moved away, and
    not yet replaced, moves back to its name.
    """
    for path in list(folder.glob(pattern)):
        if path.suffix not in {".tmp", ".old"}:
            continue
        if path.is_dir() and not path.is_symlink():
            for child in list(path.iterdir()):
                is_backup = path.suffix == ".old" and path.name.startswith(f".{child.name}.")
                if is_backup and not (folder / child.name).exists():
                    os.replace(child, folder / child.name)
            shutil.rmtree(path)
        else:
            path.unlink()
