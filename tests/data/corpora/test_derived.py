"""Derived shard sets, made of real ones through the names of --data."""

import json
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.files import MANIFEST, read_json
from data.corpora import derived_rows
from data.corpora.resolver import resolve_shard_set
from data.corpora.sample import SMALL_TOKENIZER
from data.derivations import base, derivation_names, long
from data.derivations.base import Arguments, Transformation
from data.kinds import documents, summaries
from data.records import Document, Record, SkippedRecord, Summary
from data.shards import ShardSet
from model.chat_template.template import load_template


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, as in a fresh checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """Return a file of sixty documents, each a title line and 1 to 60 sentences."""
    rows = [
        {"text": f"第{number}号报告\n" + f"山里第{number * 61}天下了雨，没有人出门。" * number}
        for number in range(1, 61)
    ]
    write_rows(tmp_path / "corpus.jsonl", rows)
    return "corpus.jsonl"


def write_rows(path: Path, rows: Iterable[object]) -> None:
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )


def read_documents(folder: Path, split: str) -> list[list[int]]:
    sequences = ShardSet.open(folder, checksums=True).load_text(split)
    return [sequences.tokens(index).tolist() for index in range(len(sequences))]


@pytest.mark.slow
def test_long_documents_are_those_of_the_source_in_their_splits(
    corpus: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a document that is cut, or held out of one set and trained on in the other."""
    source = resolve_shard_set(corpus, SMALL_TOKENIZER)
    capsys.readouterr()
    folder = resolve_shard_set(f"long({corpus},300)", SMALL_TOKENIZER)
    assert folder == Path("prepared") / f"long-300-{source.name}"
    for split in ("train", "validation"):
        expected = [ids for ids in read_documents(source, split) if len(ids) >= 300]
        assert read_documents(folder, split) == expected
        assert split == "validation" or len(expected) > 10
    report = read_json(folder / MANIFEST)["report"]
    num_kept = sum(len(read_documents(folder, split)) for split in ("train", "validation"))
    assert report["dropped"] == {"shorter than 300 tokens": 60 - num_kept}
    assert report["records"] == 60 and report["kept"] == num_kept
    line = capsys.readouterr().out
    assert line.startswith(f"long({corpus},300): {num_kept} documents of 60 records, ")
    assert f"{read_json(source / MANIFEST)['report']['tokens']:,}" in line


@pytest.mark.slow
def test_sources_of_one_name_in_different_folders_have_sets_of_their_own(corpus: str) -> None:
    """Prevents a mixture of two sets that reads the second one twice, and the first one never."""
    for name in ("a/books", "b/books"):
        shutil.copytree(resolve_shard_set(corpus, SMALL_TOKENIZER), name)
    folders = [resolve_shard_set(f"long({name},300)") for name in ("a/books", "b/books")]
    assert folders[0] != folders[1]


@pytest.mark.slow
def test_derived_set_is_written_again_only_if_its_source_or_itself_changed(
    corpus: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a resumed run from finding other data, and old documents after an edit."""
    name = f"long({corpus},300)"
    folder = resolve_shard_set(name, SMALL_TOKENIZER)
    first = (folder / MANIFEST).stat().st_ino
    fingerprint = ShardSet.open(folder).fingerprint
    assert resolve_shard_set(name, SMALL_TOKENIZER) == folder
    assert (folder / MANIFEST).stat().st_ino == first
    # Other arguments are another set.
    assert resolve_shard_set(f"long({corpus},400)", SMALL_TOKENIZER) != folder
    monkeypatch.setattr(long.LongDocuments, "version", 2)
    resolve_shard_set(name, SMALL_TOKENIZER)
    second = (folder / MANIFEST).stat().st_ino
    assert second != first and ShardSet.open(folder).fingerprint != fingerprint
    rows = Path(corpus).read_text("utf-8").splitlines(keepends=True)
    Path(corpus).write_text("".join(rows[:-3]), encoding="utf-8")
    resolve_shard_set(name, SMALL_TOKENIZER)
    assert (folder / MANIFEST).stat().st_ino != second
    assert not [path for path in Path("prepared").iterdir() if path.suffix in (".tmp", ".old")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "long(corpus.jsonl,99999)",
            r"shorter than 99,999 tokens; the longest has 1,[0-9]+ tokens$",
        ),
        ("long(corpus.jsonl)", r"one number of tokens has to follow the name: long\(NAME,TOKENS\)"),
        ("long(corpus.jsonl,4k)", "the number of tokens has to be a whole number above 0, not 4k"),
        ("long(nowhere,5)", "DATA=nowhere: unknown data set"),
        ("long(corpus.jsonl,5", "mind the brackets"),
        ("distractors(corpus.jsonl,5)", "holds documents, and .* is for conversations"),
        ("distractors(corpus.jsonl,5,6,7)", "a number of other passages has to follow the name"),
    ],
)
@pytest.mark.slow
@pytest.mark.usefixtures("corpus")
def test_mistake_is_one_line(name: str, message: str) -> None:
    """Prevents a run on an empty set, and a traceback for a wrong name."""
    with pytest.raises(UserError, match=message) as caught:
        resolve_shard_set(name, SMALL_TOKENIZER)
    assert "\n" not in str(caught.value)
    assert not Path("prepared/long-99999-corpus").exists()


@pytest.mark.slow
def test_sets_of_the_same_records_are_told_apart(tmp_path: Path) -> None:
    """Prevents a run from being resumed on other examples of the records that it began with."""
    articles = [
        {
            "title": f"第{number}个湖",
            "paragraphs": [
                {
                    "context": f"第{number}个湖有{number + 3}座岛。",
                    "qas": [
                        {
                            "question": f"湖{number}有几座岛？",
                            "answers": [{"text": f"{number + 3}座"}],
                        }
                    ],
                }
            ],
        }
        for number in range(40)
    ]
    Path("lakes.json").write_text(json.dumps({"data": articles}), encoding="utf-8")
    names = ["lakes.json", "distractors(lakes.json,2)", "distractors(lakes.json,3)"]
    sets = [ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER)) for name in names]
    assert len({shards.fingerprint for shards in sets}) == 3
    tokenizer, template = sets[0].load_tokenizer(), load_template(sets[0].folder)
    lengths = []
    for shards in sets:
        split = shards.load_records("train")
        assert split.record(0).title
        examples = shards.examples(split, 512, tokenizer, template, seed=0)
        survey = shards.example_lengths(split, tokenizer, template, seed=0)
        (spans, first_spans), *_ = split.iter_shard_spans()
        lengths.append(examples.lengths(0))
        assert (survey.fit(spans, first_spans, 0, 512).num_ids - 1 == lengths[-1]).all()
    assert (lengths[0] < lengths[1]).all() and (lengths[1] < lengths[2]).all()


# What FirstLines makes of every document.
COMMON = Summary("湖水很静，" * 20, "湖")


class FirstLines(Transformation[Document]):
    """One summary that is always the same, and twice the first line as the title of the rest."""

    name = "long"  # that of a module, which a test puts it in the place of
    usage = "long(NAME)"
    description = ""
    source_kind = documents.KIND
    kind = summaries.KIND

    def parse_arguments(self, arguments: tuple[str, ...]) -> Arguments:
        return {}

    def derive(
        self, record: Document, arguments: Arguments, *, has_title_line: bool
    ) -> Iterable[Record | SkippedRecord]:
        yield COMMON
        title, _, article = record.text.partition("\n")
        if len(article) < 100:
            yield SkippedRecord("too short")
        else:
            yield Summary(article, title)
            yield Summary(article, title)


@pytest.mark.parametrize("is_parallel", [False, True])
@pytest.mark.slow
def test_transformed_records_are_counted_and_without_repetitions(
    corpus: str, is_parallel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents new records in another order or split than their documents, or twice."""
    monkeypatch.setattr(long, "DERIVATION", FirstLines())
    if is_parallel:
        monkeypatch.setattr(derived_rows, "_MIN_PARALLEL_RECORDS", 1)
        monkeypatch.setattr(derived_rows, "_CHUNK_RECORDS", 7)
        # Threads in place of processes, which would not have this test's derivation.
        monkeypatch.setattr(derived_rows, "ProcessPoolExecutor", open_threads)
    source = ShardSet.open(resolve_shard_set(corpus, SMALL_TOKENIZER))
    folder = resolve_shard_set(f"long({corpus})", SMALL_TOKENIZER)
    shards = ShardSet.open(folder, checksums=True)
    assert shards.kind is summaries.KIND
    tokenizer = source.load_tokenizer()
    num_kept = num_short = 0
    for split in ("validation", "train"):
        texts = [tokenizer.decode(ids) for ids in read_documents(source.folder, split)]
        pairs = [text.split("\n", 1) for text in texts]
        expected = [Summary(article, title) for title, article in pairs if len(article) >= 100]
        num_short += len(pairs) - len(expected)
        if split == "validation":
            expected.insert(0, COMMON)
        records = shards.load_records(split)
        assert [records.record(index) for index in range(len(records))] == expected
        # The stored spans are those that training plans its rows from.
        for index in range(len(records)):
            shards.kind.encode_one(tokenizer, load_template(folder), records, index)
        num_kept += len(expected)
    report = shards.manifest["report"]
    # COMMON is there once, of 60 documents.
    num_repeated = num_kept - 1 + 59
    assert report["dropped"] == {"exact_duplicate": num_repeated, "too short": num_short}
    assert report["kept"] == num_kept
    assert report["records"] == num_kept + num_repeated + num_short


def open_threads(
    num_workers: int, context: object, initializer: Callable[..., None], task: tuple[Any, ...]
) -> ThreadPoolExecutor:
    """Return a pool of one thread, with the arguments of a pool of processes."""
    return ThreadPoolExecutor(1, initializer=initializer, initargs=task)


def test_every_derivation_has_the_name_of_its_module() -> None:
    """Prevents a derivation that --data cannot name, or whose usage names another."""
    assert {"long", "distractors"} <= set(derivation_names())
    for name in derivation_names():
        derivation = base.find_derivation(name)
        assert derivation.name == name and derivation.usage.startswith(f"{name}(")
        assert derivation.description and derivation.version > 0
