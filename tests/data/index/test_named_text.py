"""What `--data NAME` indexes."""

import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.corpora.manifests import load_corpora
from data.corpora.sample import SAMPLE_SFT_FILES
from data.index.build import build_index
from data.index.named_text import find_named_text
from data.index.options import IndexOptions
from data.index.passage_index import PassageIndex
from data.prepare.source_args import SourceGroup
from data.shards import SHARD_FORMAT
from data.sources import find_source
from tests.helpers.processes import run_command


@pytest.fixture(autouse=True)
def _work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder without downloads."""
    monkeypatch.chdir(tmp_path)


def names(groups: list[SourceGroup]) -> list[tuple[str, list[str]]]:
    """Return source and names of the files of each group."""
    return [(group.source, [Path(path).name for path in group.inputs]) for group in groups]


@pytest.mark.slow
def test_sample_answers_questions_about_its_test_passages() -> None:
    """Prevents an index of passages so alike that the right one is hardly ever found."""
    out, groups = find_named_text("sample")
    assert out == Path("indexed/sample")
    build_index(groups, IndexOptions(out=out))
    index = PassageIndex.open(out)
    (test_file,) = SAMPLE_SFT_FILES["redgpt"].test
    num_questions = num_found = 0
    for record in list(find_source("redgpt").iter_records(test_file))[:60]:
        assert index.contains_document(record.reference)
        for turn in record.turns:
            if turn.answer.startswith("文中没有"):
                continue
            num_questions += 1
            num_found += index.search(turn.question, 1)[0].text == record.reference
    assert num_found / num_questions > 0.65
    assert index.search("织云镇建于谷历哪一年？", 1)[0].title == "织云镇"


def test_downloaded_corpus_is_indexed_with_all_splits(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents the sample in place of a download, and questions of a test split without passage."""
    folder = Path("downloads/csl")
    folder.mkdir(parents=True)
    paths = [file.path for file in load_corpora()["csl"].files]
    for path in paths:
        (folder / path).touch()
    out, groups = find_named_text("csl")
    assert (out, names(groups)) == (Path("indexed/csl"), [("csl", paths)])
    assert capsys.readouterr().out == ""


def test_missing_downloads_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents an index of half a corpus that looks like a whole one."""
    files = load_corpora()["wikipedia"].files
    path = Path("downloads/wikipedia") / files[1].path
    path.parent.mkdir(parents=True)
    path.touch()
    _, groups = find_named_text("wikipedia")
    assert names(groups) == [("wikipedia", [path.name])]
    assert f"{len(files) - 1} files of wikipedia are not in" in capsys.readouterr().out


def test_sample_stands_in_under_another_name(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents the sample among the passages of the real corpus, once that is downloaded."""
    out, groups = find_named_text("redgpt")
    assert out == Path("indexed/sample-redgpt")
    files = ["RedGPT-Dataset-V1-CN.json.gz", "RedGPT-Dataset-V1-CN.test.json"]
    assert names(groups) == [("redgpt", files)]
    assert capsys.readouterr().out.startswith("redgpt is not downloaded here: using the sample")


def test_files_of_a_folder_are_read_by_their_own_sources() -> None:
    """Prevents a folder with two formats from being refused, and one index for two folders."""
    for folder in ("one/texts", "two/texts"):
        Path(folder).mkdir(parents=True)
        Path(folder, "a.jsonl").write_text(json.dumps({"text": "天地玄黄"}), "utf-8")
        Path(folder, "b.txt").write_text("宇宙洪荒", "utf-8")
    first_out, groups = find_named_text("one/texts")
    assert sorted(names(groups)) == [("jsonl", ["a.jsonl"]), ("text", ["b.txt"])]
    second_out, _ = find_named_text("two/texts")
    assert first_out != second_out and first_out.name.startswith("texts-")


def test_what_cannot_be_indexed_is_refused() -> None:
    """Prevents a traceback, and token ids read as text."""
    with pytest.raises(UserError, match=r"unknown data set, and no such file.*did you mean wiki"):
        find_named_text("wikipedai")
    with pytest.raises(UserError, match="holds no records"):
        find_named_text("tokenizer")
    prepared = Path("prepared/x")
    prepared.mkdir(parents=True)
    (prepared / "manifest.json").write_text(json.dumps({"format": SHARD_FORMAT}))
    with pytest.raises(UserError, match="is a prepared shard set, which is not searched"):
        find_named_text("prepared/x")


@pytest.mark.slow
def test_command_without_a_name_indexes_the_sample(tmp_path: Path) -> None:
    """Prevents a first index that needs a download."""
    # Not indexed/sample of the project, which the test would find there the next time.
    result = run_command("data.index", "--out", str(tmp_path / "sample"))
    assert result.returncode == 0, result.stderr
    assert f"{tmp_path / 'sample'}: 1,502 passages" in result.stdout
    assert "added: 1,502 passages" in result.stdout
