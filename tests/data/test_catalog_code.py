"""Prepared sets and the code that made them: other code prepares again where it can, and says so where it cannot."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.files import MANIFEST
from data import catalog, corpora
from data import prepare as prepare_module
from data.catalog import resolve
from data.shards import ShardSet


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and manifests of one corpus in two parts, of which the first is the default."""
    monkeypatch.chdir(tmp_path)
    files = ({"path": "a.jsonl", "part": "a"}, {"path": "b.jsonl", "part": "b"})
    head = {"description": "d", "licence": "CC", "homepage": "h", "megabytes": 1, "mirrors": ("{path}",), "parts": ("a",)}
    made = {"zhihu": corpora.Corpus.model_validate({**head, "source": "jsonl", "files": files})}
    monkeypatch.setattr(catalog, "corpora", lambda: made)


def write(path: Path, word: str) -> Path:
    texts = [f"第{number}天，{word}里的青蛙数了{number * 37}颗星星，然后慢慢地睡着了。" * 4 for number in range(40)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    return path


def prepared(*parts: str) -> Path:
    files = catalog.downloads("zhihu", catalog.corpora()["zhihu"], parts)
    return catalog.prepare_once("zhihu", {"jsonl": files}, catalog.SMALL_TOKENIZER)


def stamp(folder: Path) -> tuple[int, int]:
    return (folder / MANIFEST).stat().st_ino, (folder / MANIFEST).stat().st_mtime_ns


def update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "CODE", prepare_module.CODE[1:])


def test_other_code_prepares_raw_files_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents text cleaned by last month's rules being trained on after an update; a file of the list that is gone."""
    assert all(any(catalog.ROOT.glob(pattern)) for pattern in prepare_module.CODE)
    raw = str(write(Path("raw.jsonl"), "池塘"))
    first = stamp(resolve(raw, catalog.SMALL_TOKENIZER))
    update(monkeypatch)
    assert stamp(resolve(raw, catalog.SMALL_TOKENIZER)) != first


def test_all_code_that_makes_ids_is_looked_at() -> None:
    """A rule mended in a file that nobody looks at: text goes on as it was prepared, and half a preparation as another's."""
    script = ("import sys, data.assemble, data.parts, model.tokenizer_imported\n"
              "for name, module in sys.modules.items():\n"
              "    if name.partition('.')[0] in ('data', 'model') and module.__file__: print(module.__file__)")
    done = subprocess.run([sys.executable, "-c", script], cwd=catalog.ROOT, capture_output=True, text=True, check=True)
    used = {str(Path(line).relative_to(catalog.ROOT)) for line in done.stdout.splitlines()}
    looked_at = {str(path.relative_to(catalog.ROOT)) for pattern in prepare_module.CODE for path in catalog.ROOT.glob(pattern)}
    # A format with a version of its own; what only refuses tokenizers.
    assert used - looked_at == {"data/__init__.py", "model/__init__.py", "data/shards.py",
                                "model/tokenizer_patterns.py"}


@pytest.mark.parametrize("tokenizer", [None, catalog.SMALL_TOKENIZER])
def test_other_code_prepares_downloads_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokenizer: Path | None
) -> None:
    """Prevents the set of `make data` being the one that no update ever reaches."""
    write(Path("downloads/zhihu/a.jsonl"), "山坡")
    folder = prepared()
    before, fingerprint = stamp(folder), ShardSet.open(folder).fingerprint
    assert resolve("zhihu", tokenizer) == folder and stamp(folder) == before
    update(monkeypatch)
    capsys.readouterr()
    assert resolve("zhihu", tokenizer) == folder and stamp(folder) != before
    assert f"{folder} was prepared by another version of this code: preparing it again" in capsys.readouterr().out
    # The same bytes: a run that was trained on them goes on.
    assert ShardSet.open(folder, checksums=True).fingerprint == fingerprint
    before = stamp(folder)
    assert resolve("zhihu", tokenizer) == folder and stamp(folder) == before and not capsys.readouterr().err


def test_downloads_that_are_gone_keep_the_set_and_warn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a set whose raw files were deleted to save space being taken for today's, or being lost."""
    write(Path("downloads/zhihu/a.jsonl"), "山坡")
    folder = prepared()
    before = stamp(folder)
    shutil.rmtree("downloads")
    update(monkeypatch)
    capsys.readouterr()
    assert resolve("zhihu") == folder and stamp(folder) == before
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {folder} was prepared by another version") and said.count("\n") == 1
    assert "make data DATA=zhihu" in said


def test_only_the_parts_that_were_prepared_are_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an update turning the set into that of other parts of the corpus, which lie beside its own."""
    for part, word in (("a", "山坡"), ("b", "湖边的")):
        write(Path(f"downloads/zhihu/{part}.jsonl"), word)
    folder = prepared("b")
    before, fingerprint = stamp(folder), ShardSet.open(folder).fingerprint
    update(monkeypatch)
    assert stamp(resolve("zhihu")) != before
    assert ShardSet.open(folder).fingerprint == fingerprint
    os.truncate("downloads/zhihu/b.jsonl", 1000)
    before = stamp(folder)
    update(monkeypatch)
    assert stamp(resolve("zhihu")) == before
