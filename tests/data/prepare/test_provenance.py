"""Shard sets of another code version are prepared again, or reported if they cannot be."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.files import MANIFEST
from data.corpora import manifests, resolver, sample
from data.corpora.resolver import resolve_shard_set
from data.kinds import find_kind
from data.prepare import provenance
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.records import EncodedRecord
from data.shards import ShardSet
from data.sources import find_source
from tests.helpers.prepare import encode_split


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder, with a corpus in two parts, the first of which is the default."""
    monkeypatch.chdir(tmp_path)
    files = ({"path": "a.jsonl", "part": "a"}, {"path": "b.jsonl", "part": "b"})
    head = {
        "description": "d",
        "license": "CC",
        "homepage": "h",
        "megabytes": 1,
        "mirrors": ("{path}",),
        "parts": ("a",),
    }
    corpora = {
        "zhihu": manifests.Corpus.model_validate({**head, "source": "jsonl", "files": files})
    }
    monkeypatch.setattr(resolver, "load_corpora", lambda: corpora)


def write(path: Path, word: str) -> Path:
    texts = [
        f"第{number}天，{word}里的青蛙数了{number * 37}颗星星，然后慢慢地睡着了。" * 4
        for number in range(40)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts),
        encoding="utf-8",
    )
    return path


def prepared(*parts: str) -> Path:
    files = resolver.download_paths("zhihu", resolver.load_corpora()["zhihu"], parts)
    tokenizer = sample.SMALL_TOKENIZER
    return resolver.prepare_if_outdated("zhihu", {"jsonl": files}, tokenizer, parts)


def stamp(folder: Path) -> tuple[int, int]:
    return (folder / MANIFEST).stat().st_ino, (folder / MANIFEST).stat().st_mtime_ns


def update(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (provenance, resolver):
        monkeypatch.setattr(module, "PREPARE_VERSION", module.PREPARE_VERSION + 1)


@pytest.mark.slow
def test_changed_code_prepares_raw_files_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents text cleaned by old rules from being trained on after an update."""
    raw = str(write(Path("raw.jsonl"), "池塘"))
    first = stamp(resolve_shard_set(raw, sample.SMALL_TOKENIZER))
    update(monkeypatch)
    assert stamp(resolve_shard_set(raw, sample.SMALL_TOKENIZER)) != first


# Digests of the sample's shard sets and of their ids, as each version prepares them with the small
# tokenizer.
DIGESTS = {
    2: {
        "wikipedia": "8b683a925d622faf297c3cbb161b59138ea7835284987503cb3abe17c40ce0d4",
        "redgpt": "85ed8f6aa9a8afd1c0eaa3b4cfc36faae80d3ac7427ec2d5d232b4c431cd62e1",
        "csl": "ca4b8c49e66a2941d9365983ca56c51d9236db7d5b07c3ef5100b39497450b7e",
    }
}


@pytest.mark.slow
def test_the_version_is_raised_with_the_ids() -> None:
    """Prevents sets prepared by old rules from passing for current ones.

    If this fails because a change makes other ids on purpose: raise PREPARE_VERSION and record the
    new digests.
    """
    digests = {}
    for source in ("wikipedia", "redgpt", "csl"):
        folder = resolver.prepare_if_outdated(
            source, sample.sample_files(source), sample.SMALL_TOKENIZER
        )
        hasher = hashlib.sha256(ShardSet.open(folder).fingerprint.encode())
        # A set of records does not store their ids.
        for ids in encode_split(folder, "validation"):
            hasher.update(np.array(ids, dtype="<i8").tobytes())
        digests[source] = hasher.hexdigest()
    assert digests == DIGESTS[provenance.PREPARE_VERSION]


def repeat_last_id(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that encodes a record with its last id twice."""

    def encode(*arguments: Any) -> list[EncodedRecord]:
        encoded = []
        for ids, spans in method(*arguments):
            longer_spans = [*spans[:-1], *((start, stop + 1) for start, stop in spans[-1:])]
            encoded.append(([*ids, ids[-1]], longer_spans))
        return encoded

    return encode


@pytest.mark.slow
@pytest.mark.parametrize("source", ["wikipedia", "redgpt", "csl"])
def test_a_changed_rule_changes_the_fingerprint(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a test of the version that cannot fail."""
    groups = [SourceGroup(source, tuple(map(str, sample.sample_files(source)[source].train)))]
    options = PrepareOptions(workers=1, limit=20)
    fingerprints = []
    for name in ("before", "repeated", "after"):
        if name == "after":
            kind = find_kind(find_source(source).kind)
            monkeypatch.setattr(type(kind), "encode", repeat_last_id(type(kind).encode))
        prepare_groups(groups, Path(name), sample.SMALL_TOKENIZER, options)
        fingerprints.append(ShardSet.open(Path(name)).fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", [None, sample.SMALL_TOKENIZER])
def test_changed_code_prepares_downloads_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tokenizer: Path | None
) -> None:
    """Prevents an update from never reaching the sets of `make data`."""
    write(Path("downloads/zhihu/a.jsonl"), "山坡")
    folder = prepared()
    before, fingerprint = stamp(folder), ShardSet.open(folder).fingerprint
    assert resolve_shard_set("zhihu", tokenizer) == folder and stamp(folder) == before
    update(monkeypatch)
    capsys.readouterr()
    assert resolve_shard_set("zhihu", tokenizer) == folder and stamp(folder) != before
    assert (
        f"{folder} was prepared by another version of this program: preparing it again"
        in capsys.readouterr().out
    )
    # The same bytes: a run that was trained on them goes on.
    assert ShardSet.open(folder, checksums=True).fingerprint == fingerprint
    before = stamp(folder)
    assert (
        resolve_shard_set("zhihu", tokenizer) == folder
        and stamp(folder) == before
        and not capsys.readouterr().err
    )


@pytest.mark.slow
def test_missing_downloads_keep_set_with_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a set whose raw files were deleted from being lost, or from passing for current."""
    write(Path("downloads/zhihu/a.jsonl"), "山坡")
    folder = prepared()
    before = stamp(folder)
    shutil.rmtree("downloads")
    update(monkeypatch)
    capsys.readouterr()
    assert resolve_shard_set("zhihu") == folder and stamp(folder) == before
    warning = capsys.readouterr().err
    assert (
        warning.startswith(f"warning: {folder} was prepared by another version")
        and warning.count("\n") == 1
    )
    assert "make data DATA=zhihu" in warning


@pytest.mark.slow
def test_only_prepared_subsets_are_prepared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an update from preparing other parts of the corpus than those of the set."""
    for part, word in (("a", "山坡"), ("b", "湖边的")):
        write(Path(f"downloads/zhihu/{part}.jsonl"), word)
    folder = prepared("b")
    before, fingerprint = stamp(folder), ShardSet.open(folder).fingerprint
    update(monkeypatch)
    assert stamp(resolve_shard_set("zhihu")) != before
    assert ShardSet.open(folder).fingerprint == fingerprint
    os.truncate("downloads/zhihu/b.jsonl", 1000)
    before = stamp(folder)
    update(monkeypatch)
    assert stamp(resolve_shard_set("zhihu")) == before
