"""Summary sources: articles and titles are read unaltered, and exchanged ones are refused."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.records import BadRecord, SkippedRecord, Summary
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError

TITLE, ABSTRACT = "测试方法研究", "提出了一种新的方法,并在三个数据集上做了实验.结果表明,方法有效."
DOC = (
    "<doc id={id}>\n    <human_label>{label}</human_label>\n"
    "    <summary>\n        {title}\n    </summary>\n"
    "    <short_text>\n        {article}\n    </short_text>\n</doc>\n"
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(data: bytes | str, name: str = "file.tsv") -> Path:
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return _write


def kinds(name: str, path: Path) -> Counter[str]:
    return Counter(type(record).__name__ for record in find_source(name).iter_records(path))


def doc(number: int = 0, label: object = 5, title: str = TITLE, article: str = ABSTRACT) -> str:
    return DOC.format(id=number, label=label, title=title, article=article)


# Real files and those of the sample, compared with plain splitting


def two_columns(path: Path) -> list[Summary]:
    rows = [line.split("\t") for line in path.read_bytes().decode().split("\n") if line]
    return [Summary(abstract, title) for title, abstract in rows]


@pytest.mark.parametrize(("split", "count"), [("train", 2800), ("dev", 350), ("test", 350)])
def test_real_clge_csl_title_and_abstract_are_unchanged(
    shared: Path, split: str, count: int
) -> None:
    """Prevents quotation marks or half-width commas from being altered.

    Published scores are for the released text.
    """
    path = shared / "data" / "summary" / "csl_clge" / f"{split}.tsv"
    assert detect_source([path]) == "csl"
    records = list(SOURCES["csl"].iter_records(path))
    assert records == two_columns(path) and len(records) == count


@pytest.mark.parametrize(("split", "count"), [("train", 2800), ("dev", 300), ("test", 300)])
def test_sample_csl_is_title_and_abstract(root: Path, split: str, count: int) -> None:
    """Prevents a pair of the sample from being lost or altered."""
    path = root / "assets" / "sample" / "summary" / "csl" / f"{split}.tsv"
    assert detect_source([path]) == "csl"
    records = list(SOURCES["csl"].iter_records(path))
    assert records == two_columns(path) and len(records) == count


def test_original_csl_release_has_title_last(shared: Path) -> None:
    """Prevents title and abstract of the authors' release from being exchanged."""
    path = shared / "data" / "summary" / "csl_ts" / "dev.tsv"
    assert detect_source([path]) == "csl"
    rows = [line.split("\t") for line in path.read_bytes().decode().split("\n") if line]
    records = list(SOURCES["csl"].iter_records(path))
    assert (
        records == [Summary(abstract, title) for _, abstract, title in rows]
        and len(records) == 1000
    )


def test_other_csl_tasks_are_unused_not_bad(shared: Path) -> None:
    """Prevents the authors' other tasks from failing a preparation as bad records."""
    path = shared / "data" / "summary" / "csl_ts" / "titles_only_train.tsv"
    assert detect_source([path]) == "csl"
    assert list(SOURCES["csl"].iter_records(path)) == [SkippedRecord("not a summary")] * 8000


def pairs(path: Path) -> list[tuple[str | None, str, str]]:
    """Return (label, title, article) of the native documents by a pattern over the whole file."""
    pattern = (
        r"<doc id=\d+>\s*(?:<human_label>(\d)</human_label>)?\s*<summary>\s*(.*?)\s*</summary>"
        r"\s*<short_text>\s*(.*?)\s*</short_text>\s*</doc>"
    )
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.DOTALL)


def check_lcsts(path: Path, num_records: int, num_summaries: int) -> None:
    assert detect_source([path]) == "lcsts"
    records = list(SOURCES["lcsts"].iter_records(path))
    expected = [
        SkippedRecord("label below 3") if label and int(label) < 3 else Summary(article, title)
        for label, title, article in pairs(path)
    ]
    assert records == expected and len(records) == num_records
    assert sum(isinstance(record, Summary) for record in records) == num_summaries


def test_the_real_lcsts_test_part_is_the_usual_725(shared: Path) -> None:
    """Prevents another test set than the one that published scores are for."""
    check_lcsts(shared / "data" / "summary" / "lcsts" / "PART_III.txt", 1106, 725)


@pytest.mark.parametrize(
    ("part", "records", "summaries"), [("I", 900, 900), ("II", 150, 118), ("III", 150, 108)]
)
def test_sample_lcsts_parts(root: Path, part: str, records: int, summaries: int) -> None:
    """Prevents a pair of the sample from being lost or altered."""
    check_lcsts(
        root / "assets" / "sample" / "summary" / "lcsts" / f"PART_{part}.txt", records, summaries
    )


# CSL, each release


@pytest.mark.parametrize(
    "line",
    [
        f"{TITLE}\t{ABSTRACT}\n",
        f"{TITLE}\t{ABSTRACT}\r\n",
        f"to title\t{ABSTRACT}\t{TITLE}\n",
        json.dumps({"content": ABSTRACT, "summary": TITLE}),
        json.dumps({"title": TITLE, "abst": ABSTRACT}),
    ],
)
def test_every_csl_release_is_detected(write: Callable[..., Path], line: str) -> None:
    """Prevents a release of CSL from being refused or read in the wrong order."""
    path = write(line)
    assert detect_source([path]) == "csl"
    assert list(SOURCES["csl"].iter_records(path)) == [Summary(ABSTRACT, TITLE)]


def test_csl_releases_can_share_a_file(write: Callable[..., Path]) -> None:
    """Prevents the first line from deciding how all others are read."""
    lines = [
        f"{TITLE}\t{ABSTRACT}",
        f"to title\t{ABSTRACT}\t{TITLE}",
        f"to category\t{TITLE}\t工学",
        json.dumps({"title": TITLE, "abst": ABSTRACT}, ensure_ascii=False),
    ]
    assert kinds("csl", write("\n".join(lines))) == {"Summary": 3, "SkippedRecord": 1}


def test_list_like_or_quoted_titles_are_kept(write: Callable[..., Path]) -> None:
    """Prevents a title with a bracket from being read as JSON, or quotation marks as CSV's."""
    titles = ["[2,3]-环加成反应", '"外部性"的追问', "{例}的讨论", '"']
    lines = [
        f"{title}\t{ABSTRACT}{number}"
        for number, title in enumerate(titles)
        if not title.startswith("{")
    ]
    for suffix, pack in ((".tsv", bytes), (".tsv.gz", gzip.compress)):
        path = write(pack("\n".join(lines).encode()), f"a{suffix}")
        assert detect_source([path]) == "csl"
        assert [
            record.title
            for record in SOURCES["csl"].iter_records(path)
            if isinstance(record, Summary)
        ] == ["[2,3]-环加成反应", '"外部性"的追问', '"']


def test_columns_are_not_modified() -> None:
    """Prevents white space and quotation marks of the release from being altered."""
    records = find_source("csl").parse(f'{TITLE}\t \u3000{ABSTRACT} ""引"",. \n'.encode())
    assert records == Summary(f' \u3000{ABSTRACT} ""引"",. ', TITLE)


def test_classification_table_is_not_read_as_titles(write: Callable[..., Path]) -> None:
    """Prevents sentiment data from being trained on as summaries."""
    for rows in (
        [(f"{i % 2}", f"这部电影的第{i}遍也很好看") for i in range(50)],
        [(f"这部电影的第{i}遍也很好看", f"{i % 2}") for i in range(50)],
    ):
        with pytest.raises(UserError, match="cannot tell which source"):
            detect_source([write("".join(f"{a}\t{b}\n" for a, b in rows))])


# LCSTS


def test_hub_copy_is_read(write: Callable[..., Path]) -> None:
    """Prevents the hub's copy of LCSTS from being refused."""
    path = write(orjson.dumps({"summary": TITLE, "text": ABSTRACT}), "train.jsonl")
    assert detect_source([path]) == "lcsts"
    assert list(SOURCES["lcsts"].iter_records(path)) == [Summary(ABSTRACT, TITLE)]


@pytest.mark.parametrize(
    "article", ["力挺>>>", "a < b && c", "<b>甲</b>", "一\n        二\n\n三", "&amp;"]
)
def test_nothing_in_a_document_is_unescaped_or_joined(
    write: Callable[..., Path], article: str
) -> None:
    """Prevents the pseudo-XML from being parsed as XML, which it is not."""
    article = ABSTRACT + article
    assert list(SOURCES["lcsts"].iter_records(write(doc(article=article)))) == [
        Summary(article, TITLE)
    ]


def test_documents_without_newlines_are_separated(write: Callable[..., Path]) -> None:
    """Prevents documents on one line from being read as one."""
    path = write(
        "\ufeff" + "".join(doc(number).replace("\n", "") for number in range(3)), "PART_II.txt"
    )
    assert detect_source([path]) == "lcsts"
    assert list(SOURCES["lcsts"].iter_records(path)) == [Summary(ABSTRACT, TITLE)] * 3


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        (1, "SkippedRecord"),
        (2, "SkippedRecord"),
        (3, "Summary"),
        (5, "Summary"),
        (0, "BadRecord"),
        (6, "BadRecord"),
        ("", "BadRecord"),
        ("x", "BadRecord"),
    ],
)
def test_lcsts_labels_below_3_are_unused(
    write: Callable[..., Path], label: object, kind: str
) -> None:
    """Prevents headlines that do not fit from being trained on."""
    assert kinds("lcsts", write(doc(label=label))) == {kind: 1}


@pytest.mark.parametrize(
    ("broken", "bad_lines"),
    [
        (lambda text: text.replace("</doc>\n", ""), [10]),
        (lambda text: text.replace("<doc id=1>\n", ""), [10]),
        (lambda text: text.replace("    </summary>\n", ""), [10]),
        (lambda text: text.replace("    <short_text>\n", ""), [10]),
        (lambda text: text.replace("human_label>5</", "human_label>5<"), [10]),
        (lambda text: text + "not a document\nat all\n", [19]),
        (lambda text: text.replace(TITLE, " "), [10]),
        (lambda text: text.replace("<summary>", "<summary>\n<summary>"), [10]),
    ],
)
def test_malformed_document_is_one_bad_record(
    write: Callable[..., Path], broken: Callable[[str], str], bad_lines: list[int]
) -> None:
    """Prevents a broken tag from costing the next document."""
    records = list(SOURCES["lcsts"].iter_records(write(doc(0) + broken(doc(1)) + doc(2))))
    assert [record for record in records if isinstance(record, Summary)] == [
        Summary(ABSTRACT, TITLE)
    ] * (3 if bad_lines == [19] else 2)
    assert [record.line for record in records if isinstance(record, BadRecord)] == bad_lines


def test_file_truncated_inside_a_document(write: Callable[..., Path]) -> None:
    """Prevents half a document from passing for a whole one."""
    records = list(SOURCES["lcsts"].iter_records(write(doc(0) + doc(1)[:-8])))
    assert records[0] == Summary(ABSTRACT, TITLE)
    assert (
        isinstance(records[1], BadRecord)
        and records[1].line == 10
        and "not closed" in records[1].reason
    )


def test_damaged_gzip_keeps_preceding_documents(write: Callable[..., Path], root: Path) -> None:
    """Prevents the documents before damage from being lost."""
    text = (root / "assets" / "sample" / "summary" / "lcsts" / "PART_III.txt").read_bytes()
    packed = gzip.compress(text)
    records = list(
        SOURCES["lcsts"].iter_records(write(packed[: len(packed) // 2], "PART_III.txt.gz"))
    )
    assert (
        len(records) > 50
        and [isinstance(record, BadRecord) for record in records].index(True) == len(records) - 1
    )
    assert isinstance(records[-1], BadRecord) and "damaged or cut short" in records[-1].reason


# Title and abstract exchanged


EXCHANGED = [
    ("csl", f"{ABSTRACT}\t{TITLE}"),
    ("csl", f"to title\t{TITLE}\t{ABSTRACT}"),
    ("csl", json.dumps({"content": TITLE, "summary": ABSTRACT})),
    ("csl", json.dumps({"title": ABSTRACT, "abst": TITLE})),
    ("lcsts", json.dumps({"summary": ABSTRACT, "text": TITLE})),
    ("lcsts", doc(title=ABSTRACT, article=TITLE)),
]


@pytest.mark.parametrize(("name", "text"), EXCHANGED)
def test_swapped_title_and_abstract_is_reported(name: str, text: str) -> None:
    """Prevents a model that writes abstracts for titles."""
    with pytest.raises(
        SchemaError, match=r"the title is longer than its article .*they look exchanged"
    ):
        find_source(name).parse(text.encode())


def test_real_file_with_swapped_columns_is_rejected(
    shared: Path, write: Callable[..., Path]
) -> None:
    """Prevents exchanged columns from staying below the share at which preparation fails."""
    rows = [
        line.split("\t")
        for line in (shared / "data/summary/csl_clge/test.tsv").read_text("utf-8").split("\n")
        if line
    ]
    path = write("".join(f"{abstract}\t{title}\n" for title, abstract in rows))
    assert detect_source([path]) == "csl"
    assert kinds("csl", path) == {"BadRecord": len(rows)}


# Bad records


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("csl", TITLE, "1 columns; expected title TAB abstract"),
        ("csl", f"{TITLE}\t{ABSTRACT}\t工学", "3 columns"),
        ("csl", f"to title\t{ABSTRACT}", "prompt 'to title' is followed by 1 columns, not by 2"),
        ("csl", f"{TITLE}\t ", "the article is empty"),
        ("csl", f"\t{ABSTRACT}", "the title is empty"),
        ("csl", json.dumps({"content": ABSTRACT}), "no field 'summary'"),
        ("csl", json.dumps({"title": TITLE}), "no field 'abst'"),
        ("csl", json.dumps({"title": TITLE, "abst": [ABSTRACT]}), "'abst' is list"),
        ("csl", "{broken", "not valid JSON"),
        ("lcsts", json.dumps({"text": ABSTRACT}), "no field 'summary'"),
        ("lcsts", f"<doc id=0><summary>{TITLE}</summary></doc>", "no <short_text>"),
        ("lcsts", f"<doc id=0><short_text>{ABSTRACT}</short_text></doc>", "no <summary>"),
        ("lcsts", "plain words", "not valid JSON"),
    ],
)
def test_missing_or_invalid_field_is_named(name: str, text: str, reason: str) -> None:
    """Prevents a reason in the quarantine that does not name the fault."""
    with pytest.raises(SchemaError, match=reason):
        find_source(name).parse(text.encode())


@pytest.mark.parametrize(("name", "text"), [("csl", f"{TITLE}\t{ABSTRACT}"), ("lcsts", doc())])
def test_wrong_encoding_error_gives_advice(name: str, text: str) -> None:
    """Prevents GBK files from being refused without a remedy."""
    with pytest.raises(SchemaError, match=r"not UTF-8.*iconv -f gb18030"):
        find_source(name).parse(text.encode("gb18030"))


@pytest.mark.parametrize("name", ["csl", "lcsts"])
def test_sources_declare_their_record_kind(name: str) -> None:
    """Prevents summaries from being prepared as another kind of record."""
    assert (SOURCES[name].name, SOURCES[name].kind) == (name, "summaries")
