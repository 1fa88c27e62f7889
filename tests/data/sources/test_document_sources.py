"""Document sources: every native record becomes a document or a bad record, never a crash."""

import gzip
import itertools
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from data.readers.files import read_records
from data.records import BadRecord, Document
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError
from data.sources.wikipedia import build_article, strip_markup, to_simplified


def texts(name: str, path: Path) -> list[str]:
    records = list(find_source(name).iter_records(path))
    assert not [record for record in records if isinstance(record, BadRecord)]
    return [record.text for record in records if isinstance(record, Document)]


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
    """Prevents records of real files from being refused."""
    lines = head(shared / "data" / "pretrain" / file, 300)
    records = texts(name, write(b"".join(lines)))
    assert len(records) == len(lines) >= 60
    assert all(records)


def test_mnbvc_article_keeps_repeated_paragraphs_in_order(
    shared: Path, write: Callable[..., Path]
) -> None:
    """Prevents paragraphs flagged as repeated from being cut out of their article."""
    lines = head(shared / "data" / "pretrain" / "mnbvc_general.jsonl.gz", 300)
    flagged = 0
    for line, text in zip(lines, texts("mnbvc", write(b"".join(lines))), strict=True):
        paragraphs = orjson.loads(line)["段落"]
        flagged += sum(paragraph["是否重复"] for paragraph in paragraphs)
        assert text == "\n".join(paragraph["内容"] for paragraph in paragraphs)
    assert flagged > 5


def test_wiki_zh_2019_does_not_duplicate_title(shared: Path) -> None:
    """Prevents the title from standing in a document twice."""
    path = shared / "data" / "pretrain" / "wiki_zh_2019" / "AA" / "wiki_00"
    for text in texts("wiki_zh_2019", path):
        first, _, rest = text.partition("\n\n")
        assert "\n" not in first
        assert rest.split("\n")[0] != first


@pytest.mark.slow
def test_malformed_real_file_is_quarantined_line_by_line(shared: Path) -> None:
    """Prevents a file of another format from crashing the reader or passing for text."""
    path = shared / "data" / "malformed" / "dev_sft_sharegpt.csv"
    records = list(SOURCES["jsonl"].iter_records(path))
    assert all(isinstance(record, BadRecord) for record in records)
    assert len(records) == sum(bool(line.strip()) for line in path.read_bytes().split(b"\n"))


# Schemas


def test_mnbvc_orders_by_line_number_and_reads_both_hub_shapes(write: Callable[..., Path]) -> None:
    """Prevents paragraphs out of order, and the hub's tables from being refused."""
    items = [{"行号": 2, "内容": "乙"}, {"行号": 1, "内容": "甲"}, {"行号": 3, "内容": " "}]
    columns = {"行号": [2, 1, 3], "内容": ["乙", "甲", " "]}
    rows = [
        {"文件名": "a", "simhash": 2**64 - 1, "段落": items},
        {"段落": columns},
        {"段落": [{"内容": "甲"}, {"内容": "乙"}]},
    ]
    assert texts("mnbvc", write(rows)) == ["甲\n乙"] * 3


def test_mnbvc_qa_answer_keeps_its_indentation() -> None:
    """Prevents an answer of code that does not run."""
    code = "\n    x = 1\n    return x\n"
    row = {"问": "\n如何写？\n", "答": code, "元数据": {"问题明细": code * 2, "回答明细": " \n"}}
    document = SOURCES["mnbvc_qa"].parse(orjson.dumps(row))
    assert document == Document(f"如何写？{code}{code}{code[1:-1]}")


def test_mnbvc_qa_joins_question_details_answer_details(write: Callable[..., Path]) -> None:
    """Prevents details from being lost or repeated."""
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
    """Prevents a reason in the quarantine that does not name the fault."""
    with pytest.raises(SchemaError, match=reason):
        find_source(name).parse(orjson.dumps(row))


def test_jsonl_reads_the_named_field(write: Callable[..., Path]) -> None:
    """Prevents `jsonl:FIELD` from reading `text`."""
    path = write([{"text": "甲", "content": "乙"}])
    assert texts("jsonl", path) == ["甲"]
    assert texts("jsonl:content", path) == ["乙"]


def test_unknown_source_error_lists_known_sources() -> None:
    """Prevents an error that leaves the user to guess the names."""
    with pytest.raises(UserError, match=r"wikis: unknown source.*wikipedia"):
        find_source("wikis")


def test_wikipedia_is_simplified_with_single_leading_title(write: Callable[..., Path]) -> None:
    """Prevents traditional characters, and titles that stand twice or not at all."""
    rows = [
        {"id": "1", "url": "u", "title": "數學", "text": "數學是研究數量的學科。\n\n參考文獻"},
        {"id": "2", "url": "u", "title": "數學", "text": "數學\n\n數學是學科。"},
    ]
    assert texts("wikipedia", write(rows)) == [
        "数学\n\n数学是研究数量的学科。",
        "数学\n\n数学是学科。",
    ]


def test_wikipedia_parquet_matches_jsonl(write: Callable[..., Path], tmp_path: Path) -> None:
    """Prevents parquet rows from being read otherwise than JSONL."""
    import pyarrow
    import pyarrow.parquet

    rows = [{"id": str(i), "url": "u", "title": f"題{i}", "text": f"內容{i}"} for i in range(600)]
    path = tmp_path / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    reported: list[int] = []
    assert texts("wikipedia", path) == texts("wikipedia", write(list(rows)))
    assert len(list(read_records(path, reported.append))) == 600
    assert sum(reported) == path.stat().st_size
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="not a whole parquet file"):
        list(read_records(path))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲（，英文名）乙（，）丙（）", "甲（英文名）乙丙"),
        ("{{Cite web|url=x}}甲{{abc|{{bcd}}}}", "甲"),
        ("[[文件:a.jpg|缩略图]]见[[北京市|北京]]和[[上海]]", "见北京和上海"),
        ("甲<ref name=a>书</ref>乙<ref name=b />", "甲乙"),
        ("== 历史 ==\n甲", "历史\n甲"),
        ("甲\n\n参考文献\n\n外部链接\n", "甲"),
        ("缩略图|200px|一张图\n甲", "\n甲"),
        ("[http://a.b 官网]", "官网"),
        (r"$\frac{{a}}{b}$ 与 x^{{2}_{3}}", r"$\frac{{a}}{b}$ 与 x^{{2}_{3}}"),
        ("甲<ref group='a' name=b>书</ref>乙", "甲乙"),
        (
            "甲<REF >若 x<y，<i>书</i></ref >乙&lt;ref name=&quot;a&quot;&gt;书&lt;/ref&gt;丙",
            "甲乙丙",
        ),
        ("[[甲 (乙)|]]和[[File:a.jpg|缩略图|见[[北京市|北京]]]]", "甲 (乙)和"),
        ("[[std::vector]]", "std::vector"),
        ("{{DEFAULTSORT:Zhang San}}{{#if:a|b}}{{NoteTA\n|1=甲}}乙", "乙"),
        ("[[en:Mathematics]][[zh-min-nan:甲]]乙", "乙"),
        ("右|缩略图|200px|一张图\n甲__NOTOC__", "\n甲"),
        *(
            (text, text)
            for text in (
                "a[i] = b[0] || c",
                "x<ref 且 y/>z；void f(ref int x)；<ref 甲>乙</ref>",
                "{{1, 2, 3}}、{{ user.name }}、style={{color: 'red'}}、{{甲，乙}}",
                "[[ -f 文件 ]] || exit；[[1, 2, 3]]；[['a', 'b']]",
                "left|center|right 三种对齐",
                "__FILE__ 和 __LINE__",
            )
        ),
        ("[[Re:从零开始的异世界生活]]与[[CSI:犯罪现场]]", "Re:从零开始的异世界生活与CSI:犯罪现场"),
    ],
)
def test_wiki_markup_is_removed_and_formulas_kept(text: str, expected: str) -> None:
    """Prevents markup from being trained on, and formulas, code and titles from being cut."""
    assert strip_markup(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Lists without a flag
        ("-{zh-hans:软件; zh-hant:軟體}-", "软件"),
        ("-{zh-tw:部落格; zh-hans:部落; ZH-CN:博客於; zh-hk:網誌;}-", "博客於"),
        ("-{ zh-hk : 甲 ; zh-sg : 乙 ; }-", "乙"),
        ("-{zh-tw:軟體; zh-hk:軟件}-", "软体"),
        ("-{zh:軟體; zh-tw:部落格}-", "软体"),
        ("-{zh-hant:;zh-hans:;}-", ""),
        ("-{zh-cn:甲;乙&nbsp;; zh-tw:丁}-", "甲;乙&nbsp;"),
        (f"-{{zh-tw:{'長' * 600}; zh-cn:短}}-", "短"),
        # Protected text is not converted.
        ("於-{於}-是-{R|zh-cn:於}-", "于於是zh-cn:於"),
        ("甲\ufdd0-{於}-\ufdd1", "甲於"),
        ("-{}-甲-{ }-", "甲 "),
        ("-{比分 3:2}-", "比分 3:2"),
        ("-{[[甲|乙]]}-", "[[甲|乙]]"),
        ("-{zh-hans;zh-hant|乾坤與於}-", "乾坤与于"),
        ("-{zh-hant|於}-", "於"),
        # Flags
        ("甲-{H|zh-cn:博客; zh-tw:部落格;}--{-|zh-cn:a;zh-tw:b}--{T|zh-hans:甲;zh-hant:乙}-", "甲"),
        ("-{A|zh-cn:软件; zh-tw:軟體;}-甲-{A|乙}-", "软件甲乙"),
        ("-{A;T|zh-cn:软件; zh-tw:軟體}--{H;T|甲}--{ H |甲}-", "软件"),
        ("-{h|於}--{X;+|;zh-cn:软件; zh-tw:軟體}-", "於软件"),
        ("-{D|zh-cn:博客; zh-tw:部落格}-", "大陆：博客；台湾：部落格；"),
        ("-{N|zh-tw}--{N|甲}-", "台湾"),
        # Rules in one direction
        ("-{H|巨集=>zh-cn:宏;}-甲", "甲"),
        ("-{巨集=>zh-cn:宏;}-與-{軟體=&gt;zh-tw:a}-", "宏与软体"),
        ("-{巨集=>zh-cn:宏;zh-tw:巨集;zh-hans:宏指令}-", "宏指令"),
        ("-{D|巨集=>zh-cn:宏}-", "巨集⇒大陆：宏；"),
        # Nested
        ("-{zh-hans:-{於}-甲;zh-hant:-{A|zh-tw:乙}-}-", "於甲"),
        ("-{H|zh-cn:-{a}-;zh-tw:-{b}-}-甲", "甲"),
        ("-{zh-cn:甲{{lang|en|a}};zh-tw:乙}-", "甲{{lang|en|a}}"),
        # Not markup
        ("-{没完", "-{没完"),
        (r"{a}-{\frac{b}{c}}-{d^2}-x", r"{a}-{\frac{b}{c}}-{d^2}-x"),
    ],
)
def test_language_variants_are_those_of_mainland_china(text: str, expected: str) -> None:
    """Prevents flags and wordings of other regions in the text, and conversion of protected text.

    Expected as in MediaWiki's ConverterRule, but for wordings of other regions only.
    """
    assert to_simplified(text) == expected


def test_language_variants_before_the_title_are_resolved() -> None:
    """Prevents a rule on the first line from hiding that the title stands there."""
    article = build_article("-{條}-目", "-{H|zh-cn:甲;zh-tw:乙}--{條}-目\n\n正文。")
    assert article.text == "條目\n\n正文。"


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "-{",
        "}-",
        "-{{{a}}",
        "-{a}-",
        "-{a",
        "-{zh-cn:",
        ";zh-cn:",
        ";;",
        ";a=>",
        "\ufdd0",
        "\ufdd1",
        "{{",
        "{{a|",
        "[[",
        "[[a:",
        "<ref",
        "<ref>",
        "__",
        "right|",
        "==",
    ],
)
def test_wiki_markup_takes_linear_time(piece: str) -> None:
    """Prevents a regular expression that backtracks for minutes on a megabyte of one mark."""
    start = time.process_time()
    build_article("甲", "-{" + piece * (300_000 // len(piece)) + "}-")
    assert time.process_time() - start < 2


# Plain text


def test_text_file_is_one_document_and_huge_one_splits_at_paragraphs(tmp_path: Path) -> None:
    """Prevents a book of any size from being one string in memory."""
    path = tmp_path / "book.txt"
    path.write_text("第一段\n\n第二段\n", encoding="utf-8")
    assert texts("text", path) == ["第一段\n\n第二段\n"]
    paragraph = "一二三四五六七八九十" * 30 + "\n" + "续行" * 20 + "\n\n"
    path.write_text(paragraph * 9000, encoding="utf-8")
    parts = texts("text", path)
    assert len(parts) > 1
    assert "".join(parts) == paragraph * 9000
    assert all(part.strip().startswith("一二") and part.strip().endswith("续行") for part in parts)


def test_non_utf8_text_error_names_line_and_advice(tmp_path: Path) -> None:
    """Prevents GBK files from being trained on as noise, or refused without a remedy."""
    path = tmp_path / "a.txt"
    path.write_bytes("好\n".encode() + "坏的一行\n".encode("gbk"))
    (bad,) = SOURCES["text"].iter_records(path)
    assert isinstance(bad, BadRecord)
    assert "line 2" in bad.reason and "gb18030" in bad.reason


@pytest.mark.slow
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
    """Prevents a crash on JSON of any shape."""
    for source in SOURCES.values():
        try:
            assert isinstance(source.parse(orjson.dumps(value)), Document)
        except SchemaError as error:
            assert str(error)
