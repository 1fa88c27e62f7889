"""Datasets of the Hugging Face hub are prepared like files."""

import gzip
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from data.prepare.options import PrepareOptions
from data.shards import ShardSet
from tests.data.prepare.conftest import document, documents
from tests.helpers.prepare import prepare_source


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], None]:
    """Return a function that puts a source's hub dataset into a local folder."""
    import dataclasses

    from data.sources import SOURCES
    from data.sources.base import HubDataset

    def _fake(name: str, folder: Path) -> None:
        hub = HubDataset("local", "default", f"{folder}/{{folder}}/*.jsonl.gz")
        monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], hub=hub))

    return _fake


@pytest.mark.slow
def test_a_hub_dataset_is_prepared_like_files(
    corpus: Path,
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fake_hub: Callable[[str, Path], None],
) -> None:
    """Prevents a streamed or downloaded dataset with other records than its files have."""
    import datasets

    folder = tmp_path / "qa" / "20230196" / "zhihu"
    folder.mkdir(parents=True)
    rows = [
        {"id": i if i % 2 else str(i), "问": document(i, 50), "答": document(i + 1000, 200)}
        for i in range(40)
    ]
    with gzip.open(folder / "0.jsonl.gz", "wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
    fake_hub("mnbvc_qa", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for method in ("hub", "hub-download"):
        options = PrepareOptions(workers=1, limit=30)
        report = prepare_source(
            "mnbvc_qa", [f"{method}:qa_zhihu"], tmp_path / method, tokenizer, options
        )
        assert report["kept"] == 30
        assert f"{document(0, 50)}\n{document(1000, 200)}" in documents(tmp_path / method)
    assert (
        ShardSet.open(tmp_path / "hub").fingerprint
        == ShardSet.open(tmp_path / "hub-download").fingerprint
    )
