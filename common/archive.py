"""Unpacking a .zip that somebody else made: only plain files, only below the folder, never more than a stated size."""

import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from common.errors import UserError
from common.files import MANIFEST, atomic_folder, check_manifest, read_json, sha256_file

# Bytes of all files together; how many times the archive's own size that may be, beyond some megabytes; files.
MAX_UNPACKED_BYTES, MAX_COMPRESSION_RATIO, RATIO_FREE_BYTES, MAX_MEMBERS = (
    64 << 30,
    100,
    64 << 20,
    100_000,
)


def extract_zip(archive: Path, folder: Path, max_bytes: int = MAX_UNPACKED_BYTES) -> Path:
    """Unpack `archive` into `folder`, which is whole or absent; an unpacked one of the same archive is kept.

    Raises UserError for a broken archive, a member that would land outside the folder, a link, an encrypted member,
    or more than `max_bytes` bytes, `RATIO` times its own size or `MEMBERS` files in all.
    """
    digest = sha256_file(archive)
    is_unpacked = (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get(
        "archive"
    ) == digest
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
                with zip_file.open(member) as source, path.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
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
    members = [member for member in zip_file.infolist() if not member.filename.endswith("/")]
    names = set()
    for member in members:
        path = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
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
        if kind not in (0, stat.S_IFREG):
            raise UserError(f"{archive}: {member.filename!r} is not a plain file: not unpacked")
        if member.flag_bits & 1:
            raise UserError(f"{archive}: {member.filename!r} is encrypted: not unpacked")
        if path in names or path == PurePosixPath(MANIFEST):
            raise UserError(
                f"{archive}: {member.filename!r} collides with another file: not unpacked"
            )
        names.add(path)
    total, allowed = (
        sum(member.file_size for member in members),
        min(max_bytes, RATIO_FREE_BYTES + MAX_COMPRESSION_RATIO * archive.stat().st_size),
    )
    if total > allowed:
        raise UserError(
            f"{archive} holds {total} bytes, more than the {allowed} allowed for its size: not unpacked"
        )
    if len(members) > MAX_MEMBERS:
        raise UserError(
            f"{archive} holds {len(members)} files, more than the {MAX_MEMBERS} allowed: not unpacked"
        )
    return members
