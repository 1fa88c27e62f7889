"""Sets made for training hold nothing of what models are tested on."""

import itertools
import json
import random
from pathlib import Path

import pytest

from common.errors import UserError
from data.batching.summary_prompts import EncodedRequests
from data.corpora.derived_rows import _Transformer
from data.corpora.resolver import resolve_shard_set
from data.corpora.sample import SAMPLE_SFT_FILES, SMALL_TOKENIZER
from data.kinds import conversations, documents, summaries
from data.prepare.contamination import NGRAM_SIZE
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from data.records import Summary
from data.shards import SPLITS, ShardSet
from data.sources import find_source
from model.chat_template.template import Template

CHARACTERS = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜"
NUM_ARTICLES = 40


def article(seed: int) -> str:
    """Return an article of random sentences, with a title of characters that it begins with."""
    chance = random.Random(seed)
    sentences = [
        "".join(chance.choices(CHARACTERS, k=chance.randint(15, 30))) + "。" for _ in range(12)
    ]
    return f"# {sentences[0][:12]}\n\n{''.join(sentences)}"


def sample_test_texts() -> list[str]:
    """Return the articles of the sample's test summaries."""
    [path] = SAMPLE_SFT_FILES["csl"].test
    records = list(itertools.islice(find_source("csl").iter_records(path), 5))
    return [record.article for record in records if isinstance(record, Summary)]


def sample_dev_text() -> str:
    """Return an article of the sample's dev summaries that shares no passage with the test ones."""
    [dev_path], test_paths = SAMPLE_SFT_FILES["csl"].dev, SAMPLE_SFT_FILES["csl"].test
    tests = [
        record.plain_text()
        for path in test_paths
        for record in find_source("csl").iter_records(path)
        if isinstance(record, Summary)
    ]
    for record in find_source("csl").iter_records(dev_path):
        assert isinstance(record, Summary)
        if not shared_passages([strip(record.article[20:60])], tests):
            return record.article
    raise AssertionError("every dev article shares a passage with a test article")


def write_corpus(path: Path, leaked: list[str]) -> None:
    """Write random articles, of which the first ones each have one of the texts in the middle."""
    texts = [article(seed) for seed in range(NUM_ARTICLES)]
    for number, text in enumerate(leaked):
        beginning, end = texts[number].split("。", maxsplit=1)
        texts[number] = f"{beginning}。{text}{end}"
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")


def strip(text: str) -> str:
    return "".join(character for character in text if character.isalnum())


def read_texts(folder: Path) -> list[str]:
    """Return the records of all splits of a set of summaries, letters and digits alone."""
    shards = ShardSet.open(folder, checksums=True)
    return [
        strip(records.record(index).plain_text())
        for records in map(shards.load_records, SPLITS)
        for index in range(len(records))
    ]


def shared_passages(texts: list[str], test_texts: list[str]) -> set[str]:
    """Return the n-grams that some of the texts share with a test text, by sets of strings."""

    def ngrams(texts: list[str]) -> set[str]:
        return {
            text[start : start + NGRAM_SIZE]
            for text in texts
            for start in range(len(text) - NGRAM_SIZE + 1)
        }

    return ngrams(texts) & ngrams([strip(text) for text in test_texts])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, as in a fresh checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "derivation", ["titles", "headlines", "headline_extracts", "pseudo_summaries"]
)
def test_no_record_shares_a_passage_with_a_test_set(
    derivation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a model that is trained on what it is tested on: known test sets, and the user's."""
    known = [text[20:60] for text in sample_test_texts()[:3]]
    own = article(1000).split("\n\n")[1]
    Path("test.tsv").write_text(f"标题\t摘要\n自己的测试题目\t{own}\n", encoding="utf-8")
    write_corpus(Path("corpus.jsonl"), [*known, own[30:60]])
    # The test of the test: without the check they would be there.
    assert shared_passages([strip(Path("corpus.jsonl").read_text("utf-8"))], [*known, own])
    folder = resolve_shard_set(f"{derivation}(corpus.jsonl,test.tsv)", SMALL_TOKENIZER)
    report = ShardSet.open(folder).manifest["report"]
    assert report["dropped"]["shares a passage with a test set"] == 4
    texts = read_texts(folder)
    assert len(texts) == NUM_ARTICLES - 4
    assert shared_passages(texts, [*sample_test_texts(), own]) == set()


def test_decontaminated_summaries_keep_their_dev_split(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents training on what a model is tested on, and a choice without a dev split."""
    leaked = sample_test_texts()[0][20:60]
    own = article(1000).split("\n\n")[1]
    Path("test.tsv").write_text(f"标题\t摘要\n自己的测试题目\t{own}\n", encoding="utf-8")
    articles = [article(seed).split("\n\n")[1] for seed in range(NUM_ARTICLES)]
    articles[0] += leaked
    articles[1] += own[30:60]
    # What shares a passage with a dev file stays: the dev split of the set may be that file.
    articles[2] += sample_dev_text()[20:60]
    lines = (f"第{index}篇文章的题目\t{text}\n" for index, text in enumerate(articles))
    Path("train.tsv").write_text("标题\t摘要\n" + "".join(lines), encoding="utf-8")
    folder = resolve_shard_set("decontaminated(train.tsv,test.tsv)", SMALL_TOKENIZER)
    report = ShardSet.open(folder).manifest["report"]
    assert report["dropped"] == {"shares a passage with a test set": 2}
    assert report["splits"]["validation"]["sequences"] > 0
    texts = read_texts(folder)
    assert len(texts) == NUM_ARTICLES - 2
    assert shared_passages(texts, [*sample_test_texts(), own]) == set()


@pytest.mark.slow
def test_set_is_derived_again_for_another_test_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents an old set, checked against the test set of before, in the place of a new one."""
    own = article(1000).split("\n\n")[1]
    write_corpus(Path("corpus.jsonl"), [own[30:60], own[70:100]])
    name = "titles(corpus.jsonl,test.tsv)"
    counts = []
    for text in (own[:62], own[:62], own):
        Path("test.tsv").write_text(f"标题\t摘要\n自己的测试题目\t{text}\n", encoding="utf-8")
        capsys.readouterr()
        report = ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER)).manifest["report"]
        is_written = "titles(corpus.jsonl,test.tsv):" in capsys.readouterr().out
        counts.append((report["dropped"]["shares a passage with a test set"], is_written))
    assert counts == [(1, True), (1, False), (2, True)]


def test_test_file_that_does_not_exist_is_refused() -> None:
    """Prevents a set that is not checked against the test set because its name has a typo."""
    write_corpus(Path("corpus.jsonl"), [])
    with pytest.raises(UserError, match=r"test\.tsv is no file: titles\(NAME\[,TEST_FILE…\]\)$"):
        resolve_shard_set("titles(corpus.jsonl,test.tsv)", SMALL_TOKENIZER)


@pytest.mark.slow
def test_text_to_pretrain_on_is_what_fine_tuning_sees() -> None:
    """Prevents a pretraining in other ids than those that fine-tuning goes on with."""
    write_corpus(Path("corpus.jsonl"), [])
    titles = ShardSet.open(resolve_shard_set("titles(corpus.jsonl)", SMALL_TOKENIZER))
    text = ShardSet.open(resolve_shard_set("titles_as_text(corpus.jsonl)", SMALL_TOKENIZER))
    assert text.kind is documents.KIND
    tokenizer, records = titles.load_tokenizer(), titles.load_records("train")
    requests = EncodedRequests(tokenizer, Template())
    sequences = text.load_text("train")
    assert len(sequences) == len(records)
    used = set()
    for index in range(len(records)):
        ids, [(start, _)] = titles.kind.encode_one(tokenizer, Template(), records, index)
        rows = [
            [*requests.prompt(request, ids[:start]), *ids[start:], tokenizer.eos_id]
            for request in range(len(requests.lengths))
        ]
        used.add(rows.index(sequences.tokens(index).tolist()))
    assert len(used) > 20


def write_records(path: Path, leaked: str) -> None:
    """Write 40 records as a table or as conversations; the last one holds a test text."""
    articles = [article(seed).split("\n\n") for seed in range(NUM_ARTICLES)]
    articles[-1][1] += leaked
    if path.suffix == ".tsv":
        lines = ["标题\t摘要", *(f"{title[2:]}\t{text}" for title, text in articles)]
    else:
        records = ({"instruction": text, "output": title[2:]} for title, text in articles)
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("derivation", "name"),
    [("summaries_as_text", "records.tsv"), ("conversations_as_text", "records.jsonl")],
)
def test_records_as_text_are_what_fine_tuning_sees(derivation: str, name: str) -> None:
    """Prevents text in other ids than those of fine-tuning, or with a test record in it."""
    write_records(Path(name), leaked=sample_test_texts()[0][20:60])
    source = ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER))
    text = ShardSet.open(resolve_shard_set(f"{derivation}({name})", SMALL_TOKENIZER))
    assert text.kind is documents.KIND
    assert text.manifest["report"]["dropped"] == {"shares a passage with a test set": 1}
    tokenizer = source.load_tokenizer()
    expected = set()
    for stored in map(source.load_records, SPLITS):
        for index in range(len(stored)):
            ids, [(start, stop)] = source.kind.encode_one(tokenizer, Template(), stored, index)
            expected.add(tuple(ids[start:stop][-8:]))
    sequences = [text.load_text(split) for split in SPLITS]
    ids = [part.tokens(index).tolist() for part in sequences for index in range(len(part))]
    assert len(ids) == NUM_ARTICLES - 1
    if source.kind is conversations.KIND:
        assert {tuple(row[-8:]) for row in ids} <= expected
    else:
        # The span of a title is without <eos>.
        assert {tuple(row[-9:-1]) for row in ids} <= expected
    assert {row[0] for row in ids} == {tokenizer.bos_id}
    assert {row[-1] for row in ids} == {tokenizer.eos_id}


@pytest.mark.parametrize("name", ["corpus.jsonl", "records.jsonl"])
def test_text_and_conversations_are_decontaminated_as_they_are_stored(name: str) -> None:
    """Prevents training on test passages in other kinds than summaries, and ids that change."""
    leaked = sample_test_texts()[0][20:60]
    if name == "corpus.jsonl":
        write_corpus(Path(name), [leaked])
    else:
        write_records(Path(name), leaked)
    source = ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER))
    derived = ShardSet.open(resolve_shard_set(f"decontaminated({name})", SMALL_TOKENIZER))
    assert derived.kind is source.kind is not summaries.KIND
    assert derived.manifest["report"]["dropped"] == {"shares a passage with a test set": 1}
    stored, kept = (
        {
            split.tokens(index).tobytes() if source.kind.is_text else split.line(index).tobytes()
            for split in map(shards.load_split, SPLITS)
            for index in range(len(split))
        }
        for shards in (source, derived)
    )
    assert kept < stored and len(kept) == NUM_ARTICLES - 1
    # What training sees is that of the kind.
    tokenizer = derived.load_tokenizer()
    examples, expected = (
        shards.examples(shards.load_split("train"), 512, tokenizer, Template(), seed=0)
        for shards in (derived, source)
    )
    assert type(examples) is type(expected)


def test_passages_without_an_answer_are_held_out(tmp_path: Path) -> None:
    """Prevents training on passages of a test set whose questions have no answer."""
    passage = "青禾镇的水井是前年修好的，井边种着三棵枣树，镇上的人都到那里去挑水。"
    question = {"question": "谁修的水井？", "id": "1", "answers": [], "is_impossible": True}
    article = {"title": "水井", "paragraphs": [{"context": passage, "qas": [question]}]}
    test_file = Path("dev.json")
    test_file.write_text(json.dumps({"data": [article]}, ensure_ascii=False), encoding="utf-8")
    write_corpus(Path("corpus.jsonl"), [passage])
    name = "decontaminated(corpus.jsonl,dev.json)"
    derived = ShardSet.open(resolve_shard_set(name, SMALL_TOKENIZER))
    assert derived.manifest["report"]["dropped"] == {"shares a passage with a test set": 1}


def test_first_lines_of_a_field_are_no_titles(tmp_path: Path) -> None:
    """Prevents titles that are the first line of any text, where no source says that it is one."""
    texts = [
        f"今天说第{number}件事。\n" + "水井边的枣树已经结了果，孩子们天天去看。" * 4
        for number in range(9)
    ]
    lines = (json.dumps({"body": text}, ensure_ascii=False) + "\n" for text in texts)
    Path("corpus.jsonl").write_text("".join(lines), encoding="utf-8")
    group = SourceGroup("jsonl:body", ("corpus.jsonl",), ())
    prepare_groups([group], Path("set"), SMALL_TOKENIZER, PrepareOptions(workers=1))
    assert not _Transformer(Path("set"), "titles", {"test_files": []}, None)._has_title_line
