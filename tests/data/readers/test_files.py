"""Readers: records and bad records add up to what a file contains, in flat memory."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.readers import files
from data.readers.files import (
    RawRecord,
    expand_inputs,
    print_files_about_data,
    read_chunks,
    read_numbered_lines,
    read_records,
)
from data.records import BadRecord
from data.sources import SOURCES


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(data: bytes | list[object], name: str = "file.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(
            data if isinstance(data, bytes) else b"".join(orjson.dumps(row) + b"\n" for row in data)
        )
        return path

    return _write


@pytest.mark.slow
@given(
    st.lists(
        st.sampled_from(["甲", "乙乙", "\n", "\n\n", " ", "x" * 9, "\r\n", "\t"]), max_size=60
    ),
    st.integers(1, 40),
)
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_segments_lose_only_surrounding_whitespace(
    tmp_path: Path, pieces: list[str], bound: int
) -> None:
    """Prevents text from being lost at the borders of chunks."""
    path, text = tmp_path / "a.txt", "".join(pieces)
    path.write_text(text, encoding="utf-8", newline="")
    chunks = [record.data for record in read_chunks(path, bound) if isinstance(record, RawRecord)]
    assert b"".join(chunks).rstrip() == text.encode().rstrip()


def test_overlong_line_is_split_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a character from being cut in two where an endless line is split."""
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("a" + "字😀é" * 3000, encoding="utf-8")
    chunks = [
        record.data.decode() for record in read_chunks(path, 5000) if isinstance(record, RawRecord)
    ]
    assert "".join(chunks) == "a" + "字😀é" * 3000
    assert len(chunks) > 2


def test_parts_of_overlong_line_share_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents the parts of a long line from being reported under the line before it."""
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("\ufeff" + "a" * 2500 + "\n" + "b" * 1000 + "\nlast\n", encoding="utf-8")
    lines = list(read_numbered_lines(path, None, split_long_lines=True))
    assert [number for number, _, _ in lines] == [1, 1, 1, 2, 2, 3]
    assert b"".join(line for _, line, _ in lines) == path.read_bytes().removeprefix(b"\xef\xbb\xbf")


def counts(path: Path) -> tuple[int, int]:
    chunks = list(SOURCES["jsonl"].iter_records(path))
    bad = [record for record in chunks if isinstance(record, BadRecord)]
    return len(chunks) - len(bad), len(bad)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'{"text": "\xff"}\n{"text": "a"}\n', (1, 1)),
        (b'{"text": "\0"}\n{"text": "a"}', (1, 1)),
        (b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n', (2, 0)),
        (b'{"text": "\\ud800"}\n', (0, 1)),
        (b'{"text": "a"', (0, 1)),
        (b"[1]", (0, 1)),
        (b"1\nnull\n3\n", (0, 3)),
        (b"", (0, 0)),
        (b"\n \n\t\n", (0, 0)),
        (b'{"text": NaN}\n{"text": 5}\n{"text": null}', (0, 3)),
        (b"[" * 100_000 + b"\n", (0, 1)),
        ('{"text": "a"}\n'.encode("utf-16"), (0, 2)),
    ],
)
def test_invalid_bytes_are_bad_records(
    write: Callable[..., Path], data: bytes, expected: tuple[int, int]
) -> None:
    """Prevents a bad line from ending the file, or from disappearing without a trace."""
    assert counts(write(data)) == expected


@pytest.mark.slow
def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_limit_is_bad(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an endless line from filling the memory, and long lines from being refused."""
    assert counts(write(b'{"text": "' + b"a" * 10_000_000 + b'"}\n{"text": "b"}\n')) == (2, 0)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    path = write(b'{"text": "' + b"a" * 10_000_000 + b'"}\n{"text": "b"}\n')
    assert counts(path) == (1, 1)
    assert [
        record.line
        for record in SOURCES["jsonl"].iter_records(path)
        if isinstance(record, BadRecord)
    ] == [1]


@pytest.mark.slow
def test_truncated_gzip_keeps_preceding_records(tmp_path: Path) -> None:
    """Prevents the records before damage in a gzip file from being lost with the rest."""
    lines = [json.dumps({"text": f"{i} {os.urandom(200).hex()}"}) for i in range(2000)]
    whole = gzip.compress("\n".join(lines).encode())
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole[: len(whole) // 2])
    good, bad = counts(path)
    assert 500 < good < 1500 and bad == 1
    path.write_bytes(whole + b"garbage")
    good, bad = counts(path)
    assert good >= 1999 and bad == 1
    path.write_bytes(whole + whole)
    # The last line of the first member and the first line of the second are one line.
    assert counts(path) == (3998, 1)


@pytest.mark.slow
def test_memory_stays_flat_over_a_long_file(tmp_path: Path) -> None:
    """Prevents a reader from collecting a file in memory."""
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for index in range(2000):
            file.write(b'{"text": "%s"}\n' % (b"%d" % index * 4000))
    tracemalloc.start()
    count = sum(1 for _ in SOURCES["jsonl"].iter_records(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 2000
    assert peak < 8 << 20


@pytest.mark.slow
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.text(max_size=20).map(lambda t: json.dumps({"text": t}).encode()),
        )
    )
)
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_records_and_bad_records_add_up_on_any_bytes(tmp_path: Path, lines: list[bytes]) -> None:
    """Prevents any line from being counted twice or not at all."""
    data = b"\n".join(lines)
    if data[:2] == b"\x1f\x8b" or any(
        data.startswith(mark) for mark in (*files._ARCHIVE_MAGIC, b"PAR1")
    ):
        return
    if data.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\v\f")[:1] == b"[":
        return  # One JSON list: test_json_array.py
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    split = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected_lines = [number for number, line in enumerate(split, 1) if line.strip(b" \t\r\n\v\f")]
    for name in ("jsonl", "mnbvc", "mnbvc_qa", "wikipedia"):
        assert sum(counts(path)) == len(expected_lines)
        assert len(list(SOURCES[name].iter_records(path))) == len(expected_lines)
    assert [record.line for record in read_records(path)] == expected_lines


def test_expand_takes_files_folders_and_globs_in_a_stable_order(tmp_path: Path) -> None:
    """Prevents an order of files, and so of ids, that depends on the file system."""
    for name in ("b/wiki_01", "b/wiki_00", "a.jsonl", ".hidden", "b/.cache/x", "c.jsonl/inner.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    root = str(tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in expand_inputs([root])]
    assert names == ["a.jsonl", "b/wiki_00", "b/wiki_01", "c.jsonl/inner.txt"]
    # A folder with a file's name is a folder, and what is named twice is read once.
    assert [path.name for path in expand_inputs([f"{root}/*.jsonl", f"{root}/a.jsonl"])] == [
        "a.jsonl",
        "inner.txt",
    ]


def test_folder_from_a_hub_is_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents what is written about data from being read as data, or left out without a word."""
    about = ["README.md", "LICENSE", "Licence.txt", "dataset_infos.json", "dataset_info.json"]
    about += ["docs/card.md", "loader.py", "picture.png", ".gitattributes"]
    about += ["AUTHORS", "requirements.txt", "config.json"]
    data = {"train.jsonl", "readings.txt", "statement.json", "license.jsonl", "readme_qa.csv.gz"}
    for name in [*about, *(f"data/{name}" for name in data)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = {path.name for path in expand_inputs([str(tmp_path)])}
    assert names == data
    print_files_about_data([str(tmp_path), str(tmp_path / "LICENSE")])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("left out beside the data: AUTHORS, LICENSE, Licence.txt,")
    assert "and 6 more" in line
    # A file that is named, and a folder of such files alone.
    assert len(expand_inputs([str(tmp_path / "README.md"), str(tmp_path / "docs")])) == 2
    print_files_about_data([str(tmp_path / "README.md"), str(tmp_path / "docs")])
    assert capsys.readouterr().out == ""


def test_notes_in_markdown_are_data(tmp_path: Path) -> None:
    """Prevents a folder of Markdown from being empty, and its pictures from being read."""
    for name in ("a.md", "b.md", "README.md", "LICENSE", "picture.png"):
        (tmp_path / name).write_text("x")
    assert [path.name for path in expand_inputs([str(tmp_path)])] == ["a.md", "b.md"]


@pytest.mark.parametrize("text", ["nothing.jsonl", "*.nothing", "empty"])
def test_input_without_files_raises_user_error(tmp_path: Path, text: str) -> None:
    """Prevents a misspelled input from preparing nothing without a word."""
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"(no such file|no file matches|no files in it)"):
        expand_inputs([str(tmp_path / text)])


@pytest.mark.parametrize(("mark", "kind"), [(b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_archive_input_error_gives_advice(
    write: Callable[..., Path], mark: bytes, kind: str
) -> None:
    """Prevents an archive from being read as thousands of bad lines."""
    with pytest.raises(UserError, match=f"is a {kind} file: unpack it"):
        list(read_records(write(mark + b"rest")))


def test_git_lfs_pointer_error_gives_advice(write: Callable[..., Path]) -> None:
    """Prevents the pointer in a clone without Git LFS from being trained on as text."""
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
    with pytest.raises(UserError, match="git lfs pull"):
        list(SOURCES["text"].iter_records(write(pointer)))


def test_dangling_link_raises_user_error(tmp_path: Path) -> None:
    """Prevents a traceback for a link to a missing file."""
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_records(expand_inputs([str(tmp_path / "a")])[0]))
