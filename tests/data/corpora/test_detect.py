"""Detecting which source reads a raw file."""

from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from data.corpora.detect import detect_source


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("a.txt", "你好\n", "text"),
        ("a.jsonl", '{"文件名": "a", "段落": [], "simhash": 10789855592110675028}\n', "mnbvc"),
        ("a.jsonl", '{"id": 0, "问": "a", "答": "b", "来源": "c", "元数据": {}}\n', "mnbvc_qa"),
        (
            "wiki_00",
            '{"id": "1", "url": "u", "title": "数学", "text": "数学\\n\\n数学是"}\n',
            "wiki_zh_2019",
        ),
        ("a.jsonl", '{"id": "1", "url": "u", "title": "数学", "text": "数学是"}\n', "wikipedia"),
        ("a.json", '\ufeff\n\n{"text": "a", "source": "b"}\n', "jsonl"),
    ],
)
def test_raw_file_source_is_detected(tmp_path: Path, name: str, content: str, source: str) -> None:
    """Prevents a raw file from being read by the source of another schema."""
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert detect_source([tmp_path / name]) == source


@pytest.mark.slow
def test_parquet_source_is_detected_from_rows(tmp_path: Path) -> None:
    """Prevents a parquet file from being read as text."""
    import pyarrow
    import pyarrow.parquet

    rows = pyarrow.table({"id": ["1"], "url": ["u"], "title": ["数学"], "text": ["数学是"]})
    pyarrow.parquet.write_table(rows, tmp_path / "train-00000-of-00006.parquet")
    assert detect_source([tmp_path / "train-00000-of-00006.parquet"]) == "wikipedia"


def test_real_corpora_sources_are_detected(shared: Path) -> None:
    """Prevents real files from needing --source."""
    folder = shared / "data" / "pretrain"
    sources = {path.name: detect_source([path]) for path in folder.glob("*.gz")}
    assert (
        sources.pop("mnbvc_general.jsonl.gz") == "mnbvc"
        and sources.pop("mnbvc_qa.jsonl.gz") == "mnbvc_qa"
    )
    assert detect_source([folder / "wiki_zh_2019" / "AA" / "wiki_00"]) == "wiki_zh_2019"
    assert set(sources.values()) == {"jsonl"} and len(sources) > 5


@pytest.mark.parametrize(
    "content",
    [
        '{"instruction": "a", "response": "b"}\n',
        "[1, 2]\n",
        "plain words\n",
        "",
        "PK\x03\x04 zip",
        "{}\n",
    ],
)
def test_undetected_source_error_gives_advice(tmp_path: Path, content: str) -> None:
    """Prevents a guess, or an error without a way out, for a file that no source reads."""
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(UserError) as caught:
        detect_source([tmp_path / "odd.json"])
    assert "odd.json" in str(caught.value) and "\n" not in str(caught.value)
    if content.startswith(("{", "[", "plain")):
        assert "--source NAME" in str(caught.value)


MESSAGE = {"role": "user", "content": "问"}


def test_preference_pairs_are_not_read_as_conversations(shared: Path) -> None:
    """Prevents rejected answers from being trained on."""
    for name in ("dpo_zh_500.jsonl", "dpo_zh_demo.json"):
        with pytest.raises(UserError, match="preference data"):
            detect_source([shared / "data" / "preference" / name])


QUESTION = {"instruction": "问", "input": "", "output": "答"}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (QUESTION, "belle-0.5m"),
        ([QUESTION], "alpaca"),
        ({**QUESTION, "instruction": "Human:问\nAssistant:"}, "belle-0.8m"),
        ({**QUESTION, "history": []}, "deepctrl"),
        ({"instruction": "问", "output": "答"}, "alpaca"),
        ([{**QUESTION, "history": []}], "alpaca"),
        ({"input": "问\n答案：", "target": "答", "type": "nli"}, "pclue"),
        ({"input": "问", "target": "答"}, "belle-0.5m"),
        ({"messages": [MESSAGE]}, "openai"),
        ([{"messages": [MESSAGE]}], "openai"),
        ([{"conversations": []}], "sharegpt"),
    ],
)
def test_sources_are_detected_by_keys_and_shape(tmp_path: Path, data: object, name: str) -> None:
    """Prevents datasets with the same keys from being confused."""
    path = tmp_path / "data.json"
    path.write_bytes(orjson.dumps(data))
    assert detect_source([path]) == name
