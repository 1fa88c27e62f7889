"""Building an index, adding to it, interruptions, and damaged files."""

import json
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from common.errors import UserError
from common.files import sha256_file
from common.locks import exclusive_lock
from data.index import writer
from data.index.build import build_index
from data.index.options import IndexOptions
from data.index.passage_index import Hit, PassageIndex
from data.prepare.source_args import SourceGroup
from tests.helpers.index import write_documents
from tests.helpers.processes import CommandProcess, run_command

SEGMENT_SIZE = 50
QUERIES = ("天地人", "日月同辉", "山山水水", "7号")


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill a segment with 50 passages."""
    monkeypatch.setattr(writer, "MAX_PASSAGES", SEGMENT_SIZE)


@dataclass(frozen=True)
class SlowSmallSegments:
    """A fault: segments are small, and there is a pause while one is being written."""

    seconds: float

    def __call__(self) -> None:
        """Inject the fault into this process."""
        from data.index import segment, writer

        writer.MAX_PASSAGES = SEGMENT_SIZE
        original_save, seconds = segment.np.save, self.seconds

        def slow_save(*arguments: object, **keywords: object) -> None:
            time.sleep(seconds)
            original_save(*arguments, **keywords)  # type: ignore[call-overload]

        segment.np.save = slow_save  # type: ignore[assignment]


def add(out: Path, *inputs: Path, source: str = "jsonl", **windows: int) -> PassageIndex:
    """Build an index of files, or add them to it; open it with all checksums verified."""
    groups = [SourceGroup(source, tuple(map(str, inputs)))]
    build_index(groups, IndexOptions(out=out, **windows))
    return PassageIndex.open(out, checksums=True)


def search_all(index: PassageIndex) -> list[list[Hit]]:
    """Return what some queries find, without the places of the records."""
    hits = [index.search(query, 20) for query in QUERIES]
    return [[replace(hit, source="") for hit in found] for found in hits]


def read_contents(folder: Path) -> dict[str, str]:
    """Return the checksum of every file of an index."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.slow
def test_adding_later_equals_building_at_once(tmp_path: Path) -> None:
    """Prevents scores with the counts of one segment, and passages lost or doubled by adding."""
    first = write_documents(tmp_path / "first.jsonl", 0, 70)
    second = write_documents(tmp_path / "second.jsonl", 70, 130)
    both = tmp_path / "both.jsonl"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    at_once = add(tmp_path / "at-once", both)
    add(tmp_path / "later", first)
    later = add(tmp_path / "later", second)
    assert len(later) == len(at_once) > 2 * SEGMENT_SIZE
    assert search_all(later) == search_all(at_once)
    assert [p.text for p in later.passages()] == [p.text for p in at_once.passages()]


@pytest.mark.slow
def test_earlier_segments_do_not_change(tmp_path: Path) -> None:
    """Prevents an adding that rewrites what is there already."""
    add(tmp_path / "index", write_documents(tmp_path / "first.jsonl", 0, 70))
    before = read_contents(tmp_path / "index")
    fingerprint = PassageIndex.open(tmp_path / "index").fingerprint
    index = add(tmp_path / "index", write_documents(tmp_path / "second.jsonl", 70, 80))
    after = read_contents(tmp_path / "index")
    assert {name for name in before if after[name] != before[name]} == {"index.json"}
    assert index.fingerprint != fingerprint


def test_same_file_is_added_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents every passage twice after the same command, and a file with a new name."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    add(tmp_path / "index", file)
    before = read_contents(tmp_path / "index")
    copy = shutil.copy(file, tmp_path / "copy.jsonl")
    add(tmp_path / "index", file, Path(copy))
    assert read_contents(tmp_path / "index") == before
    assert "in the index already: 2 of the inputs" in capsys.readouterr().out


def test_same_document_is_added_once(tmp_path: Path) -> None:
    """Prevents a passage that fills all ranks because every question about it repeats it."""
    rows = [
        {
            "reference": f"资料第{n // 3}段，讲的是天地。",
            "dialogue": f"Human: 问题{n}？\nAssistant: 回答{n}。",
        }
        for n in range(9)
    ]
    file = tmp_path / "redgpt.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    index = add(tmp_path / "index", file, source="redgpt")
    assert [passage.text for passage in index.passages()] == [
        f"资料第{n}段，讲的是天地。" for n in range(3)
    ]
    assert index.contains_document("资料第1段，讲的是天地。")
    assert not index.contains_document("资料第3段，讲的是天地。")
    # The document of another file, too.
    rows[0]["dialogue"] = "Human: 又问？\nAssistant: 又答。"
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(rows[0], ensure_ascii=False), "utf-8")
    assert len(add(tmp_path / "index", other, source="redgpt")) == 3


def test_titles_and_places_are_those_of_the_records(tmp_path: Path) -> None:
    """Prevents passages that cannot be traced to their record, and titles in the text."""
    rows = [
        {"id": str(n), "url": "", "title": f"条目{n}", "text": f"条目{n}\n\n第{n}条的内容。"}
        for n in (1, 2)
    ]
    file = tmp_path / "wiki_00"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    index = add(tmp_path / "index", file, source="wiki_zh_2019")
    (hit,) = index.search("条目2", 1)
    assert (hit.title, hit.text, hit.source) == ("条目2", "第2条的内容。", "wiki_00:2")


@pytest.mark.slow
def test_killed_build_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """Prevents lost, doubled or half-written segments after kill -9 at any point."""
    file = write_documents(tmp_path / "input.jsonl", 0, 130)
    add(tmp_path / "whole", file)
    whole = read_contents(tmp_path / "whole")
    num_segments = sum(name.endswith("manifest.json") for name in whole)
    assert num_segments >= 3
    out = tmp_path / "killed"
    arguments = ["--source", "jsonl", "--input", str(file), "--out", str(out)]
    for count in (0, num_segments - 1):
        process = CommandProcess("data.index", *arguments, fault=SlowSmallSegments(0.005))

        def is_writing(number: int = count) -> bool:
            return any(
                len(list(folder.iterdir())) > 2
                for folder in out.glob(f".segment-{number:05d}.*.tmp")
            )

        process.send_signal_when(signal.SIGKILL, is_writing)
        assert process.wait().returncode == -signal.SIGKILL
        # Before the first index.json there is no index; and no finished segment is written again.
        with pytest.raises(UserError, match="is not an index"):
            PassageIndex.open(out)
        assert len(list(out.glob("segment-*"))) == count
    add(out, file)
    assert read_contents(out) == whole


@pytest.mark.slow
def test_killed_adding_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """Prevents an index that cannot be searched, or finds half of what is being added."""
    out = tmp_path / "index"
    index = add(out, write_documents(tmp_path / "first.jsonl", 0, 20))
    before = search_all(index)
    second = write_documents(tmp_path / "second.jsonl", 20, 150)
    arguments = ["--source", "jsonl", "--input", str(second), "--out", str(out)]
    process = CommandProcess("data.index", *arguments, fault=SlowSmallSegments(0.005))
    process.send_signal_when(signal.SIGKILL, (out / "segment-00002").exists)
    process.wait()
    assert search_all(PassageIndex.open(out, checksums=True)) == before
    # Given up for other files, nothing of it stays.
    third = write_documents(tmp_path / "third.jsonl", 150, 160)
    assert len(add(out, third)) == len(add(tmp_path / "new", tmp_path / "first.jsonl", third))
    assert not list(out.glob(".*.tmp")) and len(list(out.glob("segment-*"))) == 2


@pytest.mark.slow
def test_killed_merging_leaves_the_index_as_it_was(tmp_path: Path) -> None:
    """Prevents passages lost or doubled by kill -9 while two segments are made one."""
    out = tmp_path / "index"
    first = write_documents(tmp_path / "first.jsonl", 0, 20)
    second = write_documents(tmp_path / "second.jsonl", 20, 45)
    before = search_all(add(out, first))
    shutil.copytree(out, tmp_path / "whole")
    expected = add(tmp_path / "whole", second)
    arguments = ["--source", "jsonl", "--input", str(second), "--out", str(out)]
    process = CommandProcess("data.index", *arguments, fault=SlowSmallSegments(0.005))
    process.send_signal_when(
        signal.SIGKILL,
        lambda: any(len(list(folder.iterdir())) > 2 for folder in out.glob(".segment-00002.*.tmp")),
    )
    assert process.wait().returncode == -signal.SIGKILL
    assert search_all(PassageIndex.open(out, checksums=True)) == before
    assert search_all(add(out, second)) == search_all(expected) != before
    assert read_contents(out) == read_contents(tmp_path / "whole")
    assert [path.name for path in out.glob("*segment*")] == ["segment-00002"]


def test_torn_or_missing_files_are_named(tmp_path: Path) -> None:
    """Prevents a traceback, or passages of nowhere, from an index that was copied badly."""
    out = tmp_path / "index"
    add(out, write_documents(tmp_path / "first.jsonl", 0, 20))
    for path in sorted(out.rglob("*.*")):
        content = path.read_bytes()
        for torn in (content[: len(content) // 2], b""):
            path.write_bytes(torn)
            with pytest.raises(UserError, match=path.name):
                PassageIndex.open(out)
        path.unlink()
        with pytest.raises(
            UserError, match=path.name if path.name != "index.json" else "not an index"
        ):
            PassageIndex.open(out)
        path.write_bytes(content)
    PassageIndex.open(out, checksums=True)


def test_changed_byte_is_noticed(tmp_path: Path) -> None:
    """Prevents bit rot, and a segment of another index, from being searched."""
    out = tmp_path / "index"
    add(out, write_documents(tmp_path / "first.jsonl", 0, 20))
    path = out / "segment-00000" / "counts.npy"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"counts\.npy is damaged"):
        PassageIndex.open(out, checksums=True)
    add(tmp_path / "other", write_documents(tmp_path / "other.jsonl", 20, 40))
    shutil.rmtree(out / "segment-00000")
    shutil.copytree(tmp_path / "other" / "segment-00000", out / "segment-00000")
    with pytest.raises(UserError, match="is not the segment that"):
        PassageIndex.open(out)


@pytest.mark.slow
def test_damaged_segment_is_written_again_before_the_index_is_finished(tmp_path: Path) -> None:
    """Prevents a segment that was damaged before an interruption from entering the index."""
    file = write_documents(tmp_path / "first.jsonl", 0, 70)
    out = tmp_path / "index"
    add(out, file)
    whole = read_contents(out)
    (out / "index.json").rename(out / ".index.json.killed.tmp")
    path = out / "segment-00001" / "postings.npy"
    path.write_bytes(path.read_bytes()[:-2] + b"\1\1")
    add(out, file)
    assert read_contents(out) == whole


def test_other_options_are_refused(tmp_path: Path) -> None:
    """Prevents an index of passages of different lengths, which BM25 would treat unequally."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    add(tmp_path / "index", file)
    with pytest.raises(UserError, match=r"other options \(what differs: windows.characters\)"):
        add(tmp_path / "index", file, characters=100)


def test_index_of_another_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a search by tokens that the passages were not indexed by."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    monkeypatch.setattr(writer, "INDEX_VERSION", 0)
    with pytest.raises(UserError, match="is from another version of this program: delete"):
        add(tmp_path / "index", file)


def test_folder_with_other_files_is_not_touched(tmp_path: Path) -> None:
    """Prevents an index between the files of something else."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    with pytest.raises(UserError, match="exists and is not an index: name another folder"):
        add(tmp_path, file)
    with pytest.raises(UserError, match="exists and is not an index: name another folder"):
        add(file, file)


def test_two_builders_do_not_mix(tmp_path: Path) -> None:
    """Prevents two processes from writing segments of the same number."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    with (
        exclusive_lock(tmp_path / ".index.lock"),
        pytest.raises(UserError, match="another process is adding to it right now"),
    ):
        add(tmp_path / "index", file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there is not one passage"),
        (b"\n\n", "there is not one passage"),
        (b'{"text": "  "}\n', "there is not one passage"),
        (b'{"text": 3}\n', "field 'text' is int, not text"),
        (b'{"text": "\\ud800"}\n', "not valid JSON"),
        (b'{"text": "\xb9\xfe"}\n', "iconv"),
        (b'{"text": "' + "天地".encode() + b'"\n', "not valid JSON"),
        (b"[[1]]", "expected a JSON object"),
    ],
)
def test_hostile_source_is_one_clear_line(tmp_path: Path, content: bytes, message: str) -> None:
    """Prevents a traceback, or an index of nothing, from a file that is not of the source."""
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as error:
        add(tmp_path / "index", file)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "index").exists()


def test_bom_crlf_and_huge_numbers_are_read(tmp_path: Path) -> None:
    """Prevents a mark, a line end or a number that Windows or JSON allows from costing passages."""
    file = tmp_path / "windows.jsonl"
    lines = ['{"text": "天地玄黄", "id": %s}' % ("9" * 400), '{"text": "宇宙洪荒"}']
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n")
    index = add(tmp_path / "index", file)
    assert [passage.text for passage in index.passages()] == ["天地玄黄", "宇宙洪荒"]


@pytest.mark.slow
def test_command_prints_what_it_did(tmp_path: Path) -> None:
    """Prevents options that the command line does not have, and a report of other numbers."""
    file = write_documents(tmp_path / "first.jsonl", 0, 20)
    out = tmp_path / "index"
    arguments = ["--source", "jsonl", "--input", str(file), "--out", str(out)]
    result = run_command("data.index", *arguments, "--characters", "200", "--overlap", "20")
    assert result.returncode == 0, result.stderr
    assert f"{out}: {len(PassageIndex.open(out)):,} passages in 1 segments" in result.stdout
    result = run_command("data.index", *arguments, "--dev", str(file))
    assert (result.returncode, "--dev: an index has no" in result.stderr) == (2, True)
