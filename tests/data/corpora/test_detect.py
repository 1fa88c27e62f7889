"""Detecting which source reads a raw file."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.readers import files
from data.records import BadRecord
from data.sources import SOURCES
from tests.helpers.native_corpora import pseudo_xml_document


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
        ({"messages": [MESSAGE], "chosen": "好", "rejected": "差"}, "preferences"),
        ([{"conversations": [], "chosen": "好", "rejected": "差"}], "preferences"),
        ([{**QUESTION, "output": ["好", "差"]}], "preferences"),
        ({"instruction": "问", "output": ["好", "差"]}, "preferences"),
        ({**QUESTION, "chosen": "好", "rejected": "差"}, "preferences"),
    ],
)
def test_sources_are_detected_by_keys_and_shape(tmp_path: Path, data: object, name: str) -> None:
    """Prevents datasets with the same keys from being confused."""
    path = tmp_path / "data.json"
    path.write_bytes(orjson.dumps(data))
    assert detect_source([path]) == name


ROWS = [{"instruction": f"第{number}题？", "input": "", "output": "答"} for number in range(6)]
LINES = [orjson.dumps(row).decode() for row in ROWS]


def read(path: Path) -> tuple[str, int, int]:
    """Return the source that is detected, its usable records and its bad ones."""
    name = detect_source([path])
    records = list(SOURCES[name].iter_records(path))
    num_bad = sum(isinstance(record, BadRecord) for record in records)
    return name, len(records) - num_bad, num_bad


@pytest.mark.parametrize(
    "first",
    ["{broken", "[INFO] start", "垃圾", '{"a": 1}', "\0", "{", "[", '{"x":', '{"items": [{}]'],
)
def test_bad_first_line_is_one_bad_record(tmp_path: Path, first: str) -> None:
    """Prevents a first line from costing the file, where the same line further down is one."""
    path = tmp_path / "data.jsonl"
    for lines in ([first, *LINES], [*LINES, first]):
        path.write_text("\n".join(lines), encoding="utf-8")
        assert read(path) == ("belle-0.5m", 6, 1)


def test_file_of_mostly_unknown_records_is_refused(tmp_path: Path) -> None:
    """Prevents one record that is known by chance from naming the source of a whole file."""
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([LINES[0], *['{"prompt": "问", "answer": "答"}'] * 2]))
    with pytest.raises(UserError, match="cannot tell which source reads this"):
        detect_source([path])


def test_bad_line_before_json_over_several_lines_is_one_bad_record(tmp_path: Path) -> None:
    """Prevents the message of a program before its output from costing the output."""
    path = tmp_path / "data.json"
    texts = (json.dumps(ROWS, indent=1), "\n".join(json.dumps(row, indent=1) for row in ROWS))
    for text in texts:
        path.write_text(f"INFO: 6 records\n{text}")
        assert read(path)[1:] == (6, 1)


def test_bad_line_before_pseudo_xml_is_one_bad_record(tmp_path: Path) -> None:
    """Prevents pseudo-XML from being read as plain text for what stands before it."""
    path = tmp_path / "PART_III.txt"
    path.write_bytes(b"<?xml?>\n" + b"".join(map(pseudo_xml_document, range(4))))
    assert read(path) == ("lcsts", 4, 1)


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS),
        "\n\n".join(json.dumps(row, indent=2).replace("{\n ", "{", 1) for row in ROWS),
        json.dumps(ROWS, indent=1),
        json.dumps({"version": "1", "data": ROWS}, indent=1),
        json.dumps({"version": {"number": [1, {}]}, "RECORDS": ROWS, "count": 6}),
        json.dumps({"samples": ROWS}, indent=None) + "\n",
        "\n".join(json.dumps({"items": [{"a": 1}], **row}, indent=1) for row in ROWS),
    ],
)
@pytest.mark.parametrize("num_bytes", [1 << 20, 7])
def test_json_over_several_lines_is_read(
    tmp_path: Path, text: str, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a file that jq or json.dump wrote from being refused as no JSON."""
    monkeypatch.setattr(files, "BLOCK_BYTES", num_bytes)
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    assert read(path)[1:] == (6, 0)
    path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert read(path)[1:] == (6, 0)


@pytest.mark.parametrize(
    ("text", "num_good", "num_bad"),
    [
        # The first record is faulty, then a later one.
        ("\n".join([json.dumps(ROWS[0], indent=1)[:-1] + ",}", *LINES]), None, None),
        (json.dumps({"train": ROWS, "test": ROWS}), 6, 1),
        (json.dumps({"train": ROWS})[:-1], 6, 1),
        (json.dumps({"train": ROWS})[:-2], 6, 1),
        (json.dumps({"train": ROWS}) + "x", 6, 1),
    ],
)
def test_faults_around_the_records_are_reported(
    tmp_path: Path, text: str, num_good: int | None, num_bad: int | None
) -> None:
    """Prevents a second list, or the end of a file, from being left out without a word."""
    path = tmp_path / "data.json"
    path.write_text(text, encoding="utf-8")
    _, good, bad = read(path)
    assert bad >= 1 and (num_good is None or (good, bad) == (num_good, num_bad))


def test_one_conversation_over_several_lines_is_a_record(tmp_path: Path) -> None:
    """Prevents the messages of a record from being taken for the records of a list."""
    path = tmp_path / "data.json"
    messages = [MESSAGE, {"role": "assistant", "content": "答"}]
    path.write_text(json.dumps({"messages": messages}, indent=2))
    assert read(path) == ("openai", 1, 0)


@pytest.mark.parametrize("number", ["1e400", "-1E+999", "NaN", "-Infinity", "1" * 5000])
def test_number_that_nobody_reads_costs_no_record(tmp_path: Path, number: str) -> None:
    """Prevents a score of infinity, or pandas' missing value, from costing its record."""
    path = tmp_path / "data.jsonl"
    text = "\n".join(line[:-1] + f', "score": {number}}}' for line in LINES)
    path.write_text(text, encoding="utf-8")
    assert read(path) == ("belle-0.5m", 6, 0)
    if number == "NaN":
        path.write_text(text.replace('"input":""', '"input":NaN'), encoding="utf-8")
        assert read(path) == ("belle-0.5m", 6, 0)
    path.write_text(text.replace("答", "\\ud800"), encoding="utf-8")
    with pytest.raises(UserError, match="line 1: not valid JSON"):
        detect_source([path])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda text: text.encode("gbk"), r"is not UTF-8 but GBK: .* -f gb18030 .*'.*my data\.j"),
        (lambda text: text.encode("utf-16"), r"is not UTF-8 but UTF-16: .* -f utf-16 -t"),
        (lambda text: text.replace("}", "},").encode(), r"line 1: .*comma after the object"),
        (lambda text: text.replace('"', "'").encode(), r"line 1: .*Python's notation"),
        (lambda _: repr(ROWS).encode(), r"line 1: .*Python's notation"),
        (lambda _: json.dumps(ROWS, indent=1).replace('"\n', '",\n').encode(), "comma before }"),
        (lambda text: text.replace("}", ",}").encode(), r"line 1: .*trailing comma"),
    ],
)
def test_message_says_what_was_found(
    tmp_path: Path, spoil: Callable[[str], bytes], problem: str
) -> None:
    """Prevents one sentence, and advice to name a source, for every fault that a file can have."""
    path = tmp_path / "my data.jsonl"
    path.write_bytes(spoil("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)))
    with pytest.raises(UserError, match=problem) as caught:
        detect_source([path])
    assert "--source" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("a.txt", "春天来了。"), ("a.tsv", "标题\t摘要")])
def test_text_and_tables_in_another_encoding_are_refused(
    tmp_path: Path, name: str, text: str
) -> None:
    """Prevents a command without its file, and advice to allow more bad records."""
    path = tmp_path / name
    path.write_bytes("\n".join([text] * 9).encode("gbk"))
    with pytest.raises(UserError, match=r"not UTF-8 but GBK: convert it: iconv .* > "):
        detect_source([path])


def test_empty_fields_of_preference_data_are_none(tmp_path: Path) -> None:
    """Prevents a file from being refused for the columns of another in the same data set."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(orjson.dumps({"query": "问", "response": "答", "rejected_response": None}))
    assert read(path) == ("ms-swift", 1, 0)


def test_path_with_a_space_is_quoted_in_the_command(tmp_path: Path) -> None:
    """Prevents a command that a shell reads as two files."""
    path = tmp_path / "my data.jsonl"
    path.write_text('{"instruction": "a", "response": "b"}\n')
    with pytest.raises(UserError, match=r"--input '.*my data\.jsonl' --tokenizer"):
        detect_source([path])
