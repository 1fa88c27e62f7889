"""Hostile archives: nothing is written outside the folder, no bomb is unpacked."""

import stat
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import archive
from common.archive import extract_zip
from common.errors import UserError


def packed(
    path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], how: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(path, "w", how) as file:
        for name, data in members:
            file.writestr(name, data)
    return path


def _kind(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "a/../../out",
        "/out",
        "//out",
        "..",
        "a/..",
        "C:out",
        "c:/out",
        "..\\out",
        "a\\..\\..\\out",
        "manifest.json",
        "./manifest.json",
        ".",
        "a/./../../out",
    ],
)
def test_archive_paths_cannot_escape_folder(tmp_path: Path, name: str) -> None:
    """Prevents path traversal in every spelling, and a manifest planted by an archive."""
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    path = packed(inside / "a.zip", ("good", b"1"), (name, b"2"))
    with pytest.raises(UserError, match="not unpacked"):
        extract_zip(path, inside / "folder")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["a.zip", "deep", "inside"]


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK]
)
def test_links_and_devices_are_not_unpacked(tmp_path: Path, mode: int) -> None:
    """Prevents writing through a link, and device files."""
    path = packed(
        tmp_path / "a.zip", (_kind("link", mode | 0o777), b"/etc/passwd"), ("link/x", b"1")
    )
    with pytest.raises(UserError, match="is not a plain file: not unpacked"):
        extract_zip(path, tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
def test_archive_bombs_are_refused_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents huge contents, many files and false sizes in the directory."""
    monkeypatch.setattr(archive, "RATIO_FREE_BYTES", 1 << 20)
    path = packed(tmp_path / "a.zip", ("zeros", bytes(32 << 20)), how=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match=r"more than the \d+ allowed for its size: not unpacked"):
        extract_zip(path, tmp_path / "folder")
    monkeypatch.setattr(archive, "MAX_MEMBERS", 10)
    with pytest.raises(UserError, match="holds 11 files, more than the 10 allowed"):
        extract_zip(
            packed(tmp_path / "b.zip", *((str(n), b"") for n in range(11))), tmp_path / "folder"
        )
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 1000)
    (tmp_path / "c.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="is not a readable zip archive"):
        extract_zip(tmp_path / "c.zip", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.slow
@given(
    at=st.integers(0, 10_000),
    noise=st.binary(min_size=1, max_size=8),
    how=st.sampled_from([0, 8, 12, 14]),
)
@settings(max_examples=40)
def test_corrupted_archive_gives_one_line_error_or_loads(
    tmp_path_factory: pytest.TempPathFactory, at: int, noise: bytes, how: int
) -> None:
    """Prevents tracebacks and half-unpacked folders for damaged archives."""
    folder = tmp_path_factory.mktemp("zip")
    data = bytearray(
        packed(
            folder / "a.zip", ("a.txt", b"text " * 50), ("b/c.txt", bytes(range(256))), how=how
        ).read_bytes()
    )
    at %= len(data)
    data[at : at + len(noise)] = noise
    (folder / "a.zip").write_bytes(bytes(data))
    try:
        extract_zip(folder / "a.zip", folder / "out")
    except UserError as error:
        assert str(folder) in str(error)
        assert [path.name for path in folder.iterdir()] == ["a.zip"]
    else:
        assert {path.name for path in folder.iterdir()} == {"a.zip", "out"}
