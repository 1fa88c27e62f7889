"""Adding documents from a program."""

import threading
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.locks import exclusive_lock
from data.index import writer
from data.index.build import build_index
from data.index.options import IndexOptions
from data.index.passage_index import PassageIndex, read_index_file
from data.index.passages import TitledDocument
from data.index.writer import add_documents
from data.prepare.source_args import SourceGroup
from tests.helpers.index import random_passages, write_documents

LAKE = TitledDocument("西湖", "西湖在杭州。\n\n湖上有苏堤。", "wikipedia:西湖")
TOWER = TitledDocument("雷峰塔", "雷峰塔在西湖边。", "wikipedia:雷峰塔")


def counts(report: dict[str, Any]) -> tuple[int, int, int]:
    """Return the passages of the index, and the documents that were added and left out."""
    return report["passages"], report["documents_added"], report["documents_repeated"]


def test_documents_are_added_to_a_new_index(tmp_path: Path) -> None:
    """Prevents a program from needing files, and a source or title that is lost."""
    folder = tmp_path / "parent" / "index"
    report = add_documents(folder, [LAKE, TOWER])
    assert (report["passages"], report["documents_added"], report["documents_repeated"]) == (
        2,
        2,
        0,
    )
    (hit,) = PassageIndex.open(folder, checksums=True).search("苏堤", 5)
    assert (hit.title, hit.text, hit.source) == (LAKE.title, LAKE.text, LAKE.source)


def test_document_is_added_once(tmp_path: Path) -> None:
    """Prevents a passage that fills all ranks because it was looked up several times."""
    add_documents(tmp_path / "index", [LAKE, LAKE])
    report = add_documents(tmp_path / "index", [TOWER, LAKE])
    assert (report["passages"], report["documents_added"], report["documents_repeated"]) == (
        2,
        1,
        1,
    )
    index = PassageIndex.open(tmp_path / "index", checksums=True)
    assert [passage.title for passage in index.passages()] == ["西湖", "雷峰塔"]


def test_documents_are_divided_as_the_others_of_the_index(tmp_path: Path) -> None:
    """Prevents passages of another length, or a refusal, in an index with other options."""
    file = write_documents(tmp_path / "first.jsonl", 0, 3)
    groups = [SourceGroup("jsonl", (str(file),))]
    options = IndexOptions(out=tmp_path / "index", characters=20)
    build_index(groups, options)
    before = len(PassageIndex.open(tmp_path / "index"))
    add_documents(
        tmp_path / "index", [TitledDocument("", "一句二十个字左右的话在这里说完。" * 4, "a")]
    )
    assert len(PassageIndex.open(tmp_path / "index")) == before + 4
    # The files of the index are still known.
    assert build_index(groups, options)["passages_added"] == 0


def test_text_from_the_web_is_cleaned(tmp_path: Path) -> None:
    """Prevents a crash at half a character of JSON, and markup among the passages."""
    add_documents(tmp_path / "index", [TitledDocument("标\n题\ud800", "<b>天</b>地\ud800", "a")])
    (hit,) = PassageIndex.open(tmp_path / "index").search("天地", 1)
    assert (hit.title, hit.text) == ("标 题", "天地")


def test_nothing_to_add(tmp_path: Path) -> None:
    """Prevents an index without a passage, and a failure where nothing is to be done."""
    with pytest.raises(UserError, match="there is no text to begin an index with"):
        add_documents(tmp_path / "index", [TitledDocument("标题", " \n", "a")])
    assert not (tmp_path / "index").exists()
    add_documents(tmp_path / "index", [LAKE])
    assert add_documents(tmp_path / "index", [])["passages"] == 1


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """Prevents segments between the files of a run, and advice that names no option of chat."""
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="is not an index: name another folder"):
        add_documents(tmp_path, [LAKE])


def test_long_adding_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a conversation that hangs while a large index is built."""
    monkeypatch.setattr(writer, "_PATIENCE", 0.1)
    with (
        exclusive_lock(tmp_path / ".index.lock"),
        pytest.raises(UserError, match="another process is adding to it right now"),
    ):
        add_documents(tmp_path / "index", [LAKE])


@pytest.mark.slow
def test_many_small_addings_leave_few_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a search that gets slower with each article, and passages changed by merging.

    Segments of 8 passages at most; the searches also cover those that are too large to merge.
    """
    monkeypatch.setattr(writer, "MAX_PASSAGES", 8)
    documents = [TitledDocument(p.title, p.text, p.source) for p in random_passages(23)]
    add_documents(tmp_path / "at-once", documents)
    at_once = PassageIndex.open(tmp_path / "at-once")
    for document in documents:
        report = add_documents(tmp_path / "singly", [document])
        open_while_adding = PassageIndex.open(tmp_path / "singly")
    singly = PassageIndex.open(tmp_path / "singly", checksums=True)
    # 23 = 8 + 8 + 4 + 2 + 1; the folder has nothing else.
    sizes = [entry["passages"] for entry in read_index_file(tmp_path / "singly")["segments"]]
    assert sizes == [8, 8, 4, 2, 1] and report["segments"] == 5
    assert len(list((tmp_path / "singly").iterdir())) == 5 + 1
    assert list(singly.passages()) == list(at_once.passages())
    for query in ("天地人", "日月同辉", "花鸟"):
        assert singly.search(query, 45) == at_once.search(query, 45)
    assert all(singly.contains_document(document.text) for document in documents)
    # A search goes on in the files that merging deletes.
    add_documents(tmp_path / "singly", [LAKE, TOWER])
    assert open_while_adding.search("天地人", 45) == at_once.search("天地人", 45)


@pytest.mark.slow
def test_adding_at_the_same_time_loses_nothing(tmp_path: Path) -> None:
    """Prevents one of two conversations from undoing what the other added, and torn reads."""
    folder = tmp_path / "index"
    add_documents(folder, [LAKE])
    failures = []

    def add(name: str) -> None:
        for number in range(6):
            add_documents(folder, [TitledDocument(name, f"{name}的第{number}段。", name)])

    def read() -> None:
        while not is_done.is_set():
            try:
                index = PassageIndex.open(folder)
                assert len(index.search("西湖", 1)) == 1 and len(list(index.passages())) == len(
                    index
                )
            except Exception as error:  # reported by the test's own thread
                failures.append(error)

    is_done = threading.Event()
    adders = [threading.Thread(target=add, args=(name,)) for name in ("甲", "乙")]
    reader = threading.Thread(target=read)
    for thread in (*adders, reader):
        thread.start()
    for thread in adders:
        thread.join()
    is_done.set()
    reader.join()
    assert not failures, failures[0]
    assert len(PassageIndex.open(folder, checksums=True)) == 13
