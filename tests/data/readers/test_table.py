"""Tables with a header: columns by their names, and cells as spreadsheets write them."""

import csv
import io
from pathlib import Path

import orjson
import pytest

from data.corpora.detect import detect_source
from data.readers.files import RawRecord
from data.readers.table import find_header, read_table
from data.records import BadRecord, SkippedRecord, Summary
from data.sources import SOURCES

TITLE, ARTICLE = "测试方法研究", "提出了一种新的方法,并在三个数据集上做了实验.结果表明,方法有效."
PAIRS = [Summary(f"{ARTICLE}{number}", f"{TITLE}{number}") for number in range(5)]


@pytest.mark.parametrize("delimiter", ["\t", ","])
@pytest.mark.parametrize(
    ("title", "article", "source"),
    [
        ("标题", "摘要", "csl"),
        ("title", "abst", "csl"),
        ("Title", "Abstract", "csl"),
        ("论文标题", "论文摘要", "csl"),
        ("標題", "內容", "csl"),
        ("新闻标题", "新闻内容", "csl"),
        ("title", "news", "csl"),
        ("摘要", "正文", "csl"),
        ("summary", "content", "csl"),
        ("summary", "text", "lcsts"),
        ("summary", "short_text", "lcsts"),
    ],
)
@pytest.mark.parametrize("is_title_first", [True, False])
def test_header_names_the_columns_and_is_no_example(
    tmp_path: Path, delimiter: str, title: str, article: str, source: str, is_title_first: bool
) -> None:
    """Prevents the names of columns from being trained on, and columns from being exchanged."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    for row in [(title, article), *((pair.title, pair.article) for pair in PAIRS)]:
        writer.writerow(row if is_title_first else row[::-1])
    path = tmp_path / "dev.csv"
    for text in (file.getvalue(), "\ufeff" + file.getvalue().replace("\r\n", "\n")):
        path.write_text(text, encoding="utf-8", newline="")
        assert detect_source([path]) == source
        for name in ("csl", "lcsts"):
            assert list(SOURCES[name].iter_records(path)) == PAIRS


def test_cells_are_read_as_a_spreadsheet_writes_them(tmp_path: Path) -> None:
    """Prevents quotation marks, line ends and other columns from getting into the text."""
    pair = Summary(f'他说"好",\n然后{ARTICLE}', f'"外部性"的{TITLE}')
    for delimiter in "\t,":
        path = tmp_path / "export.tsv"
        with path.open("w", encoding="utf-8", newline="") as file:
            # The index of pandas has no name; other names have those of the two columns in them.
            header = ("", "Unnamed: 0", "文章编号", "期刊标题", "标题", "摘要", "")
            rows = [
                (0, 0, 1, "学报", pair.title, pair.article, ""),
                (1, 1, 2, "", TITLE, ARTICLE, ""),
            ]
            empty = [""] * len(header)
            csv.writer(file, delimiter=delimiter).writerows([empty, header, *rows, empty, empty])
        assert list(SOURCES["csl"].iter_records(path)) == [pair, Summary(ARTICLE, TITLE)]


@pytest.mark.parametrize("names", ["名称\t简介", "col1\tcol2", "0\t1"])
def test_other_names_above_pairs_are_no_example(tmp_path: Path, names: str) -> None:
    """Prevents a header that no list of names has from being trained on."""
    rows = [f"{pair.title}\t{pair.article}" for pair in PAIRS]
    path = tmp_path / "dev.tsv"
    path.write_text("\n".join([names, *rows]), encoding="utf-8")
    assert list(SOURCES["csl"].iter_records(path)) == PAIRS
    # A short pair among short pairs is one.
    path.write_text("甲\t甲乙丙\n丁\t丁戊己\n", encoding="utf-8")
    assert len(list(SOURCES["csl"].iter_records(path))) == 2


def test_quotation_marks_below_an_added_header_stay(tmp_path: Path) -> None:
    """Prevents a title that begins with a quotation mark from swallowing the lines after it."""
    titles = ['"外部性"的追问', '"', f'"{TITLE}']
    path = tmp_path / "train.tsv"
    lines = ["标题\t摘要", *(f"{title}\t{ARTICLE}" for title in titles)]
    path.write_text("\n".join(lines), encoding="utf-8")
    assert list(SOURCES["csl"].iter_records(path)) == [Summary(ARTICLE, title) for title in titles]


def test_bad_rows_are_reported_with_their_lines(tmp_path: Path) -> None:
    """Prevents a quotation mark that does not close from losing the rows before and after it."""
    path = tmp_path / "a.csv"
    rows = [f"{TITLE},{ARTICLE.replace(',', '，')}"] * 2
    path.write_text(
        "\n".join(
            ["title,abst", rows[0], "一,二,三", f'"{TITLE}"x,y', "title,abst", rows[1], '"a']
        ),
        encoding="utf-8",
    )
    records = list(SOURCES["csl"].iter_records(path))
    assert [record.line for record in records if isinstance(record, BadRecord)] == [3, 4, 7]
    assert sum(isinstance(record, Summary) for record in records) == 2


def test_header_before_prompts_is_left_out(tmp_path: Path) -> None:
    """Prevents the header of the authors' shape from deciding which column is the title."""
    path = tmp_path / "ts.tsv"
    rows = [f"to title\t{ARTICLE}{number}\t{TITLE}" for number in range(20)]
    path.write_text("\n".join(["prompt\ttext\ttitle", *rows]), encoding="utf-8")
    records = list(SOURCES["csl"].iter_records(path))
    assert records[0] == SkippedRecord("header")
    assert records[1:] == [Summary(f"{ARTICLE}{number}", TITLE) for number in range(20)]


def test_lcsts_labels_of_a_table_are_obeyed(tmp_path: Path) -> None:
    """Prevents headlines that do not fit from being trained on where a spreadsheet had the file."""
    path = tmp_path / "PART_II.csv"
    rows = [f'{label},{TITLE},"{ARTICLE}"' for label in ("2", "2.0", "3.0", "")]
    path.write_text("\n".join(["human_label,summary,short_text", *rows]), encoding="utf-8")
    pair, skipped = Summary(ARTICLE, TITLE), SkippedRecord("label below 3")
    assert list(SOURCES["lcsts"].iter_records(path)) == [skipped, skipped, pair, pair]


def test_bytes_of_cells_are_unchanged(tmp_path: Path) -> None:
    """Prevents bytes that are not UTF-8 from being replaced before they are reported."""
    path = tmp_path / "a.csv"
    path.write_bytes(b"title,text\n\xff,b\n\n")
    header = find_header(path.read_bytes())
    assert header is not None
    (record,) = read_table(path, header, {"title": "t", "text": "x"}, None)
    assert isinstance(record, RawRecord) and record.line == 2
    assert record.data == b'{"t": "\xff", "x": "b"}'


@pytest.mark.parametrize(
    "text",
    [
        orjson.dumps({"id": "1", "title": "数学", "text": "数学是"}).decode(),
        '["title","text"]',
        f"{TITLE}\t{ARTICLE}",
        "标题",
        "title,title",
        "title,",
        "",
    ],
)
def test_other_first_lines_are_no_header_of_pairs(tmp_path: Path, text: str) -> None:
    """Prevents a record from being taken for the names of columns."""
    from data.sources.article_title import find_pair_table

    assert find_pair_table(text.encode()) is None


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_real_table_with_a_header_gives_the_same_pairs(
    shared: Path, tmp_path: Path, split: str
) -> None:
    """Prevents pairs from being altered by a header or by a spreadsheet."""
    native = shared / "data" / "summary" / "csl_clge" / f"{split}.tsv"
    pairs = [pair for pair in SOURCES["csl"].iter_records(native) if isinstance(pair, Summary)]
    path = tmp_path / f"{split}.csv"
    for delimiter in "\t,":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(("标题", "摘要"))
            writer.writerows((pair.title, pair.article) for pair in pairs)
        assert list(SOURCES["csl"].iter_records(path)) == pairs
