"""Unpack untrusted .zip archives.

Only plain files below the target folder are written, up to a size limit.
"""

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, check_manifest, read_json, sha256_file

MAX_UNPACKED_BYTES = 64 << 30
MAX_MEMBERS = 100_000
# Limit against zip bombs: MAX_COMPRESSION_RATIO times the archive's size, plus RATIO_FREE_BYTES.
MAX_COMPRESSION_RATIO = 100
RATIO_FREE_BYTES = 64 << 20


def extract_zip(archive: Path, folder: Path, max_bytes: int = MAX_UNPACKED_BYTES) -> Path:
    """Unpack `archive` into `folder` atomically, and return `folder`.

    If `folder` is intact and was unpacked from the same archive, it is reused. Raises UserError if
    the archive is broken, holds a link, an encrypted member or a member outside the folder, exceeds
    `max_bytes`, the compression ratio or the number of files allowed, or cannot be written.
    """
    digest = sha256_file(archive)
    manifest = folder / MANIFEST
    is_unpacked = manifest.is_file() and read_json(manifest).get("archive") == digest
    if is_unpacked and check_manifest(folder) is None:
        return folder
    try:
        with (
            zipfile.ZipFile(archive) as zip_file,
            atomic_folder(folder, {"archive": digest}) as target,
        ):
            for member in _list_safe_members(archive, zip_file, max_bytes):
                path = target / member.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                # Mode x never overwrites: on some file systems two names that differ in case only
                # are one file.
                with zip_file.open(member) as source, path.open("xb") as file:
                    shutil.copyfileobj(source, file, length=1 << 20)
    # Everything that zipfile raises for broken data; NotImplementedError is a compression method
    # that it does not know.
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        EOFError,
        ValueError,
        struct.error,
    ) as error:
        raise UserError(
            f"{archive} is not a readable zip archive ({error}): delete it and download it again"
        ) from None
    except OSError as error:
        raise UserError(f"cannot unpack {archive} into {folder}: {error.strerror}") from None
    return folder


def _list_safe_members(
    archive: Path, zip_file: zipfile.ZipFile, max_bytes: int
) -> list[zipfile.ZipInfo]:
    """Return the files of the archive, without its folders.

    Raises UserError if a name or type is unsafe, or if the files are too many or too large.
    """
    # The name of a folder ends with a slash.
    members = [member for member in zip_file.infolist() if not member.filename.endswith("/")]
    names = set()
    for member in members:
        path = PurePosixPath(member.filename)
        file_type = stat.S_IFMT(member.external_attr >> 16)  # the Unix mode is in the upper half
        # Backslash and colon separate folders and drives on Windows.
        if (
            not path.parts
            or path.is_absolute()
            or ".." in path.parts
            or "\\" in member.filename
            or ":" in path.parts[0]
        ):
            raise UserError(
                f"{archive}: {member.filename!r} would be written outside the folder: not unpacked"
            )
        # Archives made on Windows have no Unix mode: 0.
        if file_type not in (0, stat.S_IFREG):
            raise UserError(f"{archive}: {member.filename!r} is not a plain file: not unpacked")
        if member.flag_bits & 1:  # "encrypted" in the zip format
            raise UserError(f"{archive}: {member.filename!r} is encrypted: not unpacked")
        if path in names or path == PurePosixPath(MANIFEST):
            raise UserError(
                f"{archive}: {member.filename!r} collides with another file: not unpacked"
            )
        names.add(path)
    # These are the sizes that the archive declares; zipfile reads no more than that of a member.
    total_bytes = sum(member.file_size for member in members)
    ratio_limit = RATIO_FREE_BYTES + MAX_COMPRESSION_RATIO * archive.stat().st_size
    allowed_bytes = min(max_bytes, ratio_limit)
    if total_bytes > allowed_bytes:
        raise UserError(
            f"{archive} holds {total_bytes} bytes, more than the {allowed_bytes} allowed for its "
            "size: not unpacked"
        )
    if len(members) > MAX_MEMBERS:
        raise UserError(
            f"{archive} holds {len(members)} files, more than the {MAX_MEMBERS} allowed: "
            "not unpacked"
        )
    return members
