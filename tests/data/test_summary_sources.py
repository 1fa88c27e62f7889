"""Summary sources: articles and titles of every release come out unaltered, and an exchange of the two is caught."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from pydantic import ValidationError

from common.errors import UserError
from data.corpora import manifests
from data.corpora.detect import detect_source
from data.records import BadRecord, SkippedRecord, Summary
from data.sources import SOURCES, find_source
from data.sources.base import SchemaError

TITLE, ABSTRACT = "测试方法研究", "提出了一种新的方法,并在三个数据集上做了实验.结果表明,方法有效."
DOC = (
    "<doc id={id}>\n    <human_label>{label}</human_label>\n    <summary>\n        {title}\n    </summary>\n"
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


# Real files and the sample's, against plain splitting


def two_columns(path: Path) -> list[Summary]:
    rows = [line.split("\t") for line in path.read_bytes().decode().split("\n") if line]
    return [Summary(abstract, title) for title, abstract in rows]


@pytest.mark.parametrize(("split", "count"), [("train", 2800), ("dev", 350), ("test", 350)])
def test_real_clge_csl_title_and_abstract_are_unchanged(
    shared: Path, split: str, count: int
) -> None:
    """Quotation marks and half-width commas included: published scores are those of the released text."""
    path = shared / "data" / "summary" / "csl_clge" / f"{split}.tsv"
    assert detect_source([path]) == "csl"
    found = list(SOURCES["csl"].iter_records(path))
    assert found == two_columns(path) and len(found) == count


@pytest.mark.parametrize(("split", "count"), [("train", 2800), ("dev", 300), ("test", 300)])
def test_sample_csl_is_title_and_abstract(root: Path, split: str, count: int) -> None:
    path = root / "assets" / "sample" / "summary" / "csl" / f"{split}.tsv"
    assert detect_source([path]) == "csl"
    found = list(SOURCES["csl"].iter_records(path))
    assert found == two_columns(path) and len(found) == count


def test_original_csl_release_has_title_last(shared: Path) -> None:
    path = shared / "data" / "summary" / "csl_ts" / "dev.tsv"
    assert detect_source([path]) == "csl"
    rows = [line.split("\t") for line in path.read_bytes().decode().split("\n") if line]
    found = list(SOURCES["csl"].iter_records(path))
    assert found == [Summary(abstract, title) for _, abstract, title in rows] and len(found) == 1000


def test_other_csl_tasks_are_unused_not_bad(shared: Path) -> None:
    path = shared / "data" / "summary" / "csl_ts" / "titles_only_train.tsv"
    assert detect_source([path]) == "csl"
    assert list(SOURCES["csl"].iter_records(path)) == [SkippedRecord("not a summary")] * 8000


def pairs(path: Path) -> list[tuple[str | None, str, str]]:
    """The native documents by a pattern over the whole file."""
    pattern = (
        r"<doc id=\d+>\s*(?:<human_label>(\d)</human_label>)?\s*<summary>\s*(.*?)\s*</summary>"
        r"\s*<short_text>\s*(.*?)\s*</short_text>\s*</doc>"
    )
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.DOTALL)


def check_lcsts(path: Path, records: int, summaries: int) -> None:
    assert detect_source([path]) == "lcsts"
    found, wanted = list(SOURCES["lcsts"].iter_records(path)), pairs(path)
    assert len(found) == len(wanted) == records
    for record, (label, title, article) in zip(found, wanted, strict=True):
        assert record == (
            SkippedRecord("label below 3") if label and int(label) < 3 else Summary(article, title)
        )
    assert sum(isinstance(record, Summary) for record in found) == summaries


def test_the_real_lcsts_test_part_is_the_usual_725(shared: Path) -> None:
    check_lcsts(shared / "data" / "summary" / "lcsts" / "PART_III.txt", 1106, 725)


@pytest.mark.parametrize(
    ("part", "records", "summaries"), [("I", 900, 900), ("II", 150, 118), ("III", 150, 108)]
)
def test_sample_lcsts_parts(root: Path, part: str, records: int, summaries: int) -> None:
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
    path = write(line)
    assert detect_source([path]) == "csl"
    assert list(SOURCES["csl"].iter_records(path)) == [Summary(ABSTRACT, TITLE)]


def test_csl_releases_can_share_a_file(write: Callable[..., Path]) -> None:
    lines = [
        f"{TITLE}\t{ABSTRACT}",
        f"to title\t{ABSTRACT}\t{TITLE}",
        f"to category\t{TITLE}\t工学",
        json.dumps({"title": TITLE, "abst": ABSTRACT}, ensure_ascii=False),
    ]
    assert kinds("csl", write("\n".join(lines))) == {"Summary": 3, "SkippedRecord": 1}


def test_list_like_or_quoted_titles_are_kept(write: Callable[..., Path]) -> None:
    """Prevents a table whose first title begins with a bracket from being read as JSON, or a quotation mark as CSV's."""
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
    found = find_source("csl").parse(f'{TITLE}\t \u3000{ABSTRACT} ""引"",. \n'.encode())
    assert found == Summary(f' \u3000{ABSTRACT} ""引"",. ', TITLE)


def test_classification_table_is_not_read_as_titles(write: Callable[..., Path]) -> None:
    """Prevents sentiment data from being learnt as summaries."""
    for rows in (
        [(f"{i % 2}", f"这部电影的第{i}遍也很好看") for i in range(50)],
        [(f"这部电影的第{i}遍也很好看", f"{i % 2}") for i in range(50)],
    ):
        with pytest.raises(UserError, match="cannot tell which source"):
            detect_source([write("".join(f"{a}\t{b}\n" for a, b in rows))])


# LCSTS


def test_hub_copy_is_read(write: Callable[..., Path]) -> None:
    path = write(orjson.dumps({"summary": TITLE, "text": ABSTRACT}), "train.jsonl")
    assert detect_source([path]) == "lcsts"
    assert list(SOURCES["lcsts"].iter_records(path)) == [Summary(ABSTRACT, TITLE)]


@pytest.mark.parametrize(
    "article", ["力挺>>>", "a < b && c", "<b>甲</b>", "一\n        二\n\n三", "&amp;"]
)
def test_nothing_in_a_document_is_unescaped_or_joined(
    write: Callable[..., Path], article: str
) -> None:
    article = ABSTRACT + article
    assert list(SOURCES["lcsts"].iter_records(write(doc(article=article)))) == [
        Summary(article, TITLE)
    ]


def test_documents_without_newlines_are_separated(write: Callable[..., Path]) -> None:
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
    found = list(SOURCES["lcsts"].iter_records(write(doc(0) + broken(doc(1)) + doc(2))))
    assert [record for record in found if isinstance(record, Summary)] == [
        Summary(ABSTRACT, TITLE)
    ] * (3 if bad_lines == [19] else 2)
    assert [record.line for record in found if isinstance(record, BadRecord)] == bad_lines


def test_file_truncated_inside_a_document(write: Callable[..., Path]) -> None:
    found = list(SOURCES["lcsts"].iter_records(write(doc(0) + doc(1)[:-8])))
    assert found[0] == Summary(ABSTRACT, TITLE)
    assert (
        isinstance(found[1], BadRecord) and found[1].line == 10 and "not closed" in found[1].reason
    )


def test_damaged_gzip_keeps_preceding_documents(write: Callable[..., Path], root: Path) -> None:
    text = (root / "assets" / "sample" / "summary" / "lcsts" / "PART_III.txt").read_bytes()
    packed = gzip.compress(text)
    found = list(
        SOURCES["lcsts"].iter_records(write(packed[: len(packed) // 2], "PART_III.txt.gz"))
    )
    assert (
        len(found) > 50
        and [isinstance(record, BadRecord) for record in found].index(True) == len(found) - 1
    )
    assert isinstance(found[-1], BadRecord) and "damaged or cut short" in found[-1].reason


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
    with pytest.raises(
        SchemaError, match=r"the title is longer than its article .*they look exchanged"
    ):
        find_source(name).parse(text.encode())


def test_real_file_with_swapped_columns_is_rejected(
    shared: Path, write: Callable[..., Path]
) -> None:
    """Far past the share of bad records at which preparation fails: nothing is ever silently swapped."""
    rows = [
        line.split("\t")
        for line in (shared / "data/summary/csl_clge/test.tsv").read_text("utf-8").split("\n")
        if line
    ]
    path = write("".join(f"{abstract}\t{title}\n" for title, abstract in rows))
    assert detect_source([path]) == "csl"
    assert kinds("csl", path) == {"BadRecord": len(rows)}


# What is wrong is named


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
    with pytest.raises(SchemaError, match=reason):
        find_source(name).parse(text.encode())


@pytest.mark.parametrize(("name", "text"), [("csl", f"{TITLE}\t{ABSTRACT}"), ("lcsts", doc())])
def test_wrong_encoding_error_gives_advice(name: str, text: str) -> None:
    with pytest.raises(SchemaError, match=r"not UTF-8.*iconv -f gb18030"):
        find_source(name).parse(text.encode("gb18030"))


@pytest.mark.parametrize("name", ["csl", "lcsts"])
def test_sources_declare_their_record_kind(name: str) -> None:
    assert (SOURCES[name].name, SOURCES[name].kind) == (name, "summaries")


# Manifests


def test_dev_and_test_splits_never_enter_training() -> None:
    """Prevents a test split from being prepared along with the training files of the same name."""
    known = manifests.load_corpora()
    assert {
        "redgpt",
        "naturalconv",
        "belle-0.5m",
        "belle-0.8m",
        "deepctrl",
        "pclue",
        "lcsts",
        "csl",
    } <= set(known)
    roles = {
        name: {file.path: file.role for file in corpus.select_files(())}
        for name, corpus in known.items()
    }
    assert roles["csl"] == {"train.tsv": "train", "dev.tsv": "dev", "test.tsv": "test"}
    assert roles["lcsts"] == {
        "train.jsonl": "train",
        "valid.jsonl": "dev",
        "test_public.jsonl": "test",
    }
    for files in roles.values():
        assert "train" in files.values()
        for path, role in files.items():
            assert role == (
                "dev" if re.search("dev|valid", path) else "test" if "test" in path else "train"
            )


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValidationError, match="role"):
        manifests.CorpusFile.model_validate({"path": "a.tsv", "role": "testing"})
