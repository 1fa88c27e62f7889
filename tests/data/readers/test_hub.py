"""Hub datasets, streamed and downloaded, from a local folder in place of the hub."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest

from common.errors import UserError
from data.readers.hub import HubDataset, is_hub_input, read_hub_records
from data.records import BadRecord, Document
from data.sources import SOURCES
from data.sources.base import Source

WAYS = pytest.mark.parametrize("way", ["hub", "hub-download"])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Redirect downloads to a folder of the test."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def wiki(folder: Path) -> Source:
    """Return the source `wikipedia` with a table of two rows in place of its hub dataset."""
    import pyarrow
    import pyarrow.parquet

    (folder / "20231101.zh").mkdir(parents=True)
    rows = [
        {"id": "1", "url": "u", "title": "數學", "text": "內容"},
        {"id": "2", "url": "u", "title": "乙", "text": "丙"},
    ]
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(rows), folder / "20231101.zh" / "train-00000-of-00001.parquet"
    )
    card = (
        '---\nconfigs:\n- config_name: "20231101.zh"\n  data_files: "20231101.zh/*.parquet"\n---\n'
    )
    (folder / "README.md").write_text(card)
    source = SOURCES["wikipedia"]
    assert source.hub is not None
    return dataclasses.replace(source, hub=dataclasses.replace(source.hub, path=str(folder)))


def zhihu(folder: Path, text: bytes) -> tuple[Source, Path]:
    """Return the source `mnbvc_qa` with a file of these lines in place of its hub dataset."""
    path = folder / "qa" / "20230196" / "zhihu" / "0.jsonl.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(text))
    hub = HubDataset("liwu/MNBVC", "qa_zhihu", f"{folder}/{{folder}}/*.jsonl.gz")
    return dataclasses.replace(SOURCES["mnbvc_qa"], hub=hub), path


@pytest.mark.slow
@WAYS
def test_a_table_gives_its_rows(tmp_path: Path, way: str) -> None:
    """Prevents a hub table from being read otherwise than its files."""
    local = wiki(tmp_path / "wiki")
    records = [local.try_parse(raw) for raw in read_hub_records(local.require_hub(way), way)]
    assert records == [Document("数学\n\n内容"), Document("乙\n\n丙")]
    with pytest.raises(
        UserError, match=rf"--input {way}:20991231\.zh: .*cannot be (streamed|downloaded)"
    ):
        list(read_hub_records(local.require_hub(way), f"{way}:20991231.zh"))


@WAYS
def test_native_hub_files_give_lines_for_any_type(tmp_path: Path, way: str) -> None:
    """Prevents an id that is a number in one row and text in another from ending the records."""
    rows = [
        json.dumps({"id": i if i % 2 else str(i), "问": "问", "答": str(i)}, ensure_ascii=False)
        for i in range(5)
    ]
    source, _ = zhihu(tmp_path, "\n".join([*rows, "{broken", ""]).encode())
    records = [source.try_parse(raw) for raw in read_hub_records(source.require_hub(way), way)]
    assert records[:5] == [Document(f"问\n{i}") for i in range(5)]
    assert isinstance(records[5], BadRecord) and records[5].line == 6


@pytest.mark.slow
def test_downloaded_hub_rows_match_streamed_rows(tmp_path: Path, cache: Path) -> None:
    """Prevents streaming that fills the disk, and a download with other records."""
    lines = [
        json.dumps({"id": i, "问": f"问{i}", "答": f"\u2028答\r{i}"}, ensure_ascii=False)
        for i in range(3000)
    ]
    source, _ = zhihu(tmp_path, "\n\n".join(lines).encode())
    streamed = list(read_hub_records(source.require_hub("hub"), "hub"))
    assert not list(cache.rglob("*.arrow"))
    assert (
        list(read_hub_records(source.require_hub("hub"), "hub-download")) == streamed
        and len(streamed) == 3000
    )
    assert [raw.data for raw in streamed] == [line.encode() for line in lines]
    assert list(cache.rglob("*.arrow"))


@WAYS
def test_truncated_file_gives_one_line_error(tmp_path: Path, way: str) -> None:
    """Prevents a broken connection from passing for the end of the data."""
    source, path = zhihu(tmp_path, b'{"id": 1}\n' * 50_000)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        UserError, match=r"--input hub.* cannot be (streamed|downloaded): .*end-of-stream"
    ) as caught:
        list(read_hub_records(source.require_hub(way), way))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("hub", True),
        ("hub:x", True),
        ("hub-download", True),
        ("hub-download:x", True),
        ("hubs", False),
        ("hub-downloads/a", False),
        ("./hub", False),
        ("download", False),
    ],
)
def test_local_files_are_not_treated_as_hub_datasets(text: str, is_one: bool) -> None:
    """Prevents a local path such as hubs/a from starting a download."""
    assert is_hub_input(text) == is_one


@WAYS
def test_source_without_hub_dataset_gives_clear_error(way: str) -> None:
    """Prevents a traceback for a source that is not on the hub."""
    with pytest.raises(UserError, match=f"--input {way}: the source text is not on the hub"):
        SOURCES["text"].require_hub(way)
