"""Sources and reading: every record of a native file comes out as a document or as a bad record, never as a crash."""

import gzip
import itertools
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
from data.readers.files import RawRecord, expand_inputs, read_chunks, read_records
from data.records import BadRecord, Document
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError
from data.sources.wikipedia import strip_markup


def texts(name: str, path: Path) -> list[str]:
    found = list(find_source(name).iter_records(path))
    assert not [record for record in found if isinstance(record, BadRecord)]
    return [record.text for record in found if isinstance(record, Document)]


def head(path: Path, count: int) -> list[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return list(itertools.islice(file, count))


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


# Real files


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mnbvc", "mnbvc_general.jsonl.gz"),
        ("mnbvc_qa", "mnbvc_qa.jsonl.gz"),
        ("jsonl", "novels.jsonl.gz"),
        ("jsonl", "laws.jsonl.gz"),
        ("wiki_zh_2019", "wiki_zh_2019/AA/wiki_00"),
    ],
)
def test_every_line_of_a_real_file_is_a_document(
    shared: Path, write: Callable[..., Path], name: str, file: str
) -> None:
    lines = head(shared / "data" / "pretrain" / file, 300)
    found = texts(name, write(b"".join(lines)))
    assert len(found) == len(lines) >= 60
    assert all(found)


def test_mnbvc_article_keeps_repeated_paragraphs_in_order(
    shared: Path, write: Callable[..., Path]
) -> None:
    """A paragraph is not a document, and one flagged as repeated still belongs to its article."""
    lines = head(shared / "data" / "pretrain" / "mnbvc_general.jsonl.gz", 300)
    flagged = 0
    for line, text in zip(lines, texts("mnbvc", write(b"".join(lines))), strict=True):
        paragraphs = orjson.loads(line)["段落"]
        flagged += sum(paragraph["是否重复"] for paragraph in paragraphs)
        assert text == "\n".join(paragraph["内容"] for paragraph in paragraphs)
    assert flagged > 5


def test_wiki_zh_2019_does_not_duplicate_title(shared: Path) -> None:
    path = shared / "data" / "pretrain" / "wiki_zh_2019" / "AA" / "wiki_00"
    for text in texts("wiki_zh_2019", path):
        first, _, rest = text.partition("\n\n")
        assert "\n" not in first
        assert rest.split("\n")[0] != first


def test_malformed_real_file_is_quarantined_line_by_line(shared: Path) -> None:
    path = shared / "data" / "malformed" / "dev_sft_sharegpt.csv"
    found = list(SOURCES["jsonl"].iter_records(path))
    assert all(isinstance(record, BadRecord) for record in found)
    assert len(found) == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))


# Schemas


def test_mnbvc_orders_by_line_number_and_reads_both_hub_shapes(write: Callable[..., Path]) -> None:
    items = [{"行号": 2, "内容": "乙"}, {"行号": 1, "内容": "甲"}, {"行号": 3, "内容": " "}]
    columns = {"行号": [2, 1, 3], "内容": ["乙", "甲", " "]}
    rows = [
        {"文件名": "a", "simhash": 2**64 - 1, "段落": items},
        {"段落": columns},
        {"段落": [{"内容": "甲"}, {"内容": "乙"}]},
    ]
    assert texts("mnbvc", write(rows)) == ["甲\n乙"] * 3


def test_mnbvc_qa_joins_question_details_answer_details(write: Callable[..., Path]) -> None:
    rows = [
        {
            "id": 1,
            "问": "问题",
            "答": "回答",
            "来源": "知乎",
            "元数据": {"问题明细": "为何", "回答明细": "因为"},
        },
        {"id": "a", "问": "问题", "答": "回答", "元数据": {"问题明细": "问题", "回答明细": ""}},
        {"id": 2, "问": "问题", "答": "", "问题明细": "问题在此", "元数据": None},
    ]
    assert texts("mnbvc_qa", write(rows)) == ["问题\n为何\n回答\n因为", "问题\n回答", "问题在此"]


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("mnbvc", {"text": "a"}, "there is no field '段落'"),
        ("mnbvc", {"段落": "a"}, "段落 is str"),
        ("mnbvc", {"段落": [{"行号": 1}]}, "paragraph 0 has no text"),
        ("mnbvc", {"段落": {"行号": [1]}}, "without the lists"),
        ("mnbvc_qa", {"问": 1, "答": "a"}, "'问' is int"),
        ("mnbvc_qa", {"问": " ", "答": ""}, "both empty"),
        ("mnbvc_qa", [], "expected a JSON object"),
        ("wikipedia", {"title": "a"}, "no field 'text'"),
        ("wikipedia", {"title": 1, "text": "a"}, "'title' is int"),
        ("jsonl", {"content": "a"}, "there are: content"),
        ("jsonl:content", {"text": "a"}, "no field 'content'"),
    ],
)
def test_wrong_schema_error_names_the_key(name: str, row: object, reason: str) -> None:
    with pytest.raises(SchemaError, match=reason):
        find_source(name).parse(orjson.dumps(row))


def test_jsonl_reads_the_named_field(write: Callable[..., Path]) -> None:
    path = write([{"text": "甲", "content": "乙"}])
    assert texts("jsonl", path) == ["甲"]
    assert texts("jsonl:content", path) == ["乙"]


def test_unknown_source_error_lists_known_sources() -> None:
    with pytest.raises(UserError, match=r"wikis: there is no such source.*wikipedia"):
        find_source("wikis")


def test_wikipedia_is_simplified_with_single_leading_title(write: Callable[..., Path]) -> None:
    rows = [
        {"id": "1", "url": "u", "title": "數學", "text": "數學是研究數量的學科。\n\n參考文獻"},
        {"id": "2", "url": "u", "title": "數學", "text": "數學\n\n數學是學科。"},
    ]
    assert texts("wikipedia", write(rows)) == [
        "数学\n\n数学是研究数量的学科。",
        "数学\n\n数学是学科。",
    ]


def test_wikipedia_parquet_matches_jsonl(write: Callable[..., Path], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": str(i), "url": "u", "title": f"題{i}", "text": f"內容{i}"} for i in range(600)]
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    told: list[int] = []
    assert texts("wikipedia", path) == texts("wikipedia", write(list(rows)))
    assert len(list(read_records(path, told.append))) == 600
    assert sum(told) == path.stat().st_size
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a whole parquet file"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲（，英文名）乙（，）丙（）", "甲（英文名）乙丙"),
        ("{{Cite web|url=x}}甲{{abc|{{bcd}}}}", "甲"),
        ("[[文件:a.jpg|缩略图]]见[[北京市|北京]]和[[上海]]", "见北京和上海"),
        ("-{zh-hans:软件; zh-hant:軟體}-", "软件"),
        ("-{原文}-", "原文"),
        ("甲<ref name=a>书</ref>乙<ref name=b />", "甲乙"),
        ("== 历史 ==\n甲", "历史\n甲"),
        ("甲\n\n参考文献\n\n外部链接\n", "甲"),
        ("缩略图|200px|一张图\n甲", "\n甲"),
        ("[http://a.b 官网]", "官网"),
        (r"$\frac{{a}}{b}$ 与 x^{{2}_{3}}", r"$\frac{{a}}{b}$ 与 x^{{2}_{3}}"),
        ("a[i] = b[0] || c", "a[i] = b[0] || c"),
    ],
)
def test_wiki_markup_is_removed_and_formulas_kept(text: str, expected: str) -> None:
    assert strip_markup(text) == expected


# Plain text


def test_text_file_is_one_document_and_huge_one_splits_at_paragraphs(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("第一段\n\n第二段\n", encoding="utf-8")
    assert texts("text", path) == ["第一段\n\n第二段\n"]
    paragraph = "一二三四五六七八九十" * 30 + "\n" + "续行" * 20 + "\n\n"
    path.write_text(paragraph * 9000, encoding="utf-8")
    parts = texts("text", path)
    assert len(parts) > 1
    assert "".join(parts) == paragraph * 9000
    assert all(part.strip().startswith("一二") and part.strip().endswith("续行") for part in parts)


@given(
    st.lists(
        st.sampled_from(["甲", "乙乙", "\n", "\n\n", " ", "x" * 9, "\r\n", "\t"]), max_size=60
    ),
    st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_segments_lose_only_surrounding_whitespace(
    tmp_path: Path, pieces: list[str], bound: int
) -> None:
    path, text = tmp_path / "a.txt", "".join(pieces)
    path.write_text(text, encoding="utf-8", newline="")
    found = [record.data for record in read_chunks(path, bound) if isinstance(record, RawRecord)]
    assert b"".join(found).rstrip() == text.encode().rstrip()


def test_overlong_line_is_split_between_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = tmp_path / "a.txt"
    path.write_text("a" + "字😀é" * 3000, encoding="utf-8")
    found = [
        record.data.decode() for record in read_chunks(path, 5000) if isinstance(record, RawRecord)
    ]
    assert "".join(found) == "a" + "字😀é" * 3000
    assert len(found) > 2


def test_non_utf8_text_error_names_line_and_advice(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("好\n".encode() + "坏的一行\n".encode("gbk"))
    (bad,) = SOURCES["text"].iter_records(path)
    assert isinstance(bad, BadRecord)
    assert "line 2" in bad.reason and "gb18030" in bad.reason


# Bad files


def counts(path: Path) -> tuple[int, int]:
    found = list(SOURCES["jsonl"].iter_records(path))
    bad = [record for record in found if isinstance(record, BadRecord)]
    return len(found) - len(bad), len(bad)


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
    assert counts(write(data)) == expected


def test_a_line_of_ten_megabytes_is_read_and_one_beyond_the_limit_is_bad(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert counts(write(b'{"text": "' + b"a" * 10_000_000 + b'"}\n{"text": "b"}\n')) == (2, 0)
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1 << 20)
    path = write(b'{"text": "' + b"a" * 10_000_000 + b'"}\n{"text": "b"}\n')
    assert counts(path) == (1, 1)
    assert [
        record.line
        for record in SOURCES["jsonl"].iter_records(path)
        if isinstance(record, BadRecord)
    ] == [1]


def test_truncated_gzip_keeps_preceding_records(tmp_path: Path) -> None:
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
    # The last line of the first member and the first line of the second have no line end between them.
    assert counts(path) == (3998, 1)


def test_memory_stays_flat_over_a_long_file(tmp_path: Path) -> None:
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


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.text(max_size=20).map(lambda t: json.dumps({"text": t}).encode()),
        )
    )
)
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_records_and_bad_records_add_up_on_any_bytes(tmp_path: Path, lines: list[bytes]) -> None:
    data = b"\n".join(lines)
    if data[:2] == b"\x1f\x8b" or any(
        data.startswith(mark) for mark in (*files._ARCHIVE_MAGIC, b"PAR1")
    ):
        return
    if data.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\v\f")[:1] == b"[":
        return  # One JSON list: test_reading_lists.py
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    split = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    wanted = [number for number, line in enumerate(split, 1) if line.strip(b" \t\r\n\v\f")]
    for name in ("jsonl", "mnbvc", "mnbvc_qa", "wikipedia"):
        assert sum(counts(path)) == len(wanted)
        assert len(list(SOURCES[name].iter_records(path))) == len(wanted)
    assert [record.line for record in read_records(path)] == wanted


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["段落", "行号", "内容", "问", "答", "元数据", "问题明细", "title", "text"]
                ),
                inner,
                max_size=4,
            )
        ),
    )
)
@settings(deadline=None, max_examples=150)
def test_any_json_is_a_document_or_a_bad_row(value: object) -> None:
    for source in SOURCES.values():
        try:
            assert isinstance(source.parse(orjson.dumps(value)), Document)
        except SchemaError as error:
            assert str(error)


# Inputs


def test_expand_takes_files_folders_and_globs_in_a_stable_order(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("text", ["nothing.jsonl", "*.nothing", "empty"])
def test_input_without_files_raises_user_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"--input .*(no such file|no file matches|no files in it)"):
        expand_inputs([str(tmp_path / text)])


@pytest.mark.parametrize(("mark", "kind"), [(b"PK\x03\x04", "zip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_archive_input_error_gives_advice(
    write: Callable[..., Path], mark: bytes, kind: str
) -> None:
    with pytest.raises(UserError, match=f"is a {kind} file: unpack it"):
        list(read_records(write(mark + b"rest")))


def test_dangling_link_raises_user_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_records(expand_inputs([str(tmp_path / "a")])[0]))
