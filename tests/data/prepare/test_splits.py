"""A shard set has the tokenizer's ids and a validation split that the text alone decides."""

import json
from pathlib import Path

import numpy as np
import orjson
import pytest

from data.prepare.dedup import text_digest
from data.prepare.options import DedupOptions, PrepareOptions
from data.prepare.pipeline import format_report, prepare_groups
from data.prepare.source_args import SourceGroup
from data.shards import SPLITS, ShardSet
from model.tokenizer import load_tokenizer
from tests.data.prepare.conftest import document, run
from tests.helpers.prepare import prepare_source


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_bytes(b"".join(orjson.dumps({"text": text}) + b"\n" for text in texts))
    return path


def read_split(folder: Path, name: str) -> set[str]:
    """Return the texts of a split."""
    shards = ShardSet.open(folder)
    sequences, tokenizer = shards.load_text(name), shards.load_tokenizer()
    ids = (sequences.tokens(index)[1:-1].tolist() for index in range(len(sequences)))
    return set(map(tokenizer.decode, ids))


@pytest.mark.slow
def test_shard_tokens_match_tokenizer(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    """Prevents ids of batches or processes that differ from those of a single text."""
    out = tmp_path / "out"
    prepare_source("jsonl", [str(corpus)], out, tokenizer, PrepareOptions(validation=0))
    loaded, sequences = load_tokenizer(tokenizer), ShardSet.open(out).load_text("train")
    for index in (0, 7, 199):
        expected = [loaded.bos_id, *loaded.encode(document(index)), loaded.eos_id]
        assert np.array_equal(sequences.tokens(index), expected)


@pytest.mark.slow
def test_validation_split_depends_only_on_text(tokenizer: Path, tmp_path: Path) -> None:
    """Prevents documents that move from validation to train when the corpus grows."""
    texts = [document(seed, 60) for seed in range(600)]
    for name, part in (("whole", texts), ("reversed", texts[::-1]), ("half", texts[:300])):
        path = write_corpus(tmp_path / f"{name}.jsonl", part)
        prepare_source("jsonl", [str(path)], tmp_path / name, tokenizer, PrepareOptions())
    whole = read_split(tmp_path / "whole", "validation")
    assert 30 < len(whole) < 100
    assert read_split(tmp_path / "reversed", "validation") == whole
    assert read_split(tmp_path / "half", "validation") <= whole


@pytest.mark.parametrize(
    ("count", "share", "num_validation"),
    [(1, 0.005, {0}), (2, 0.005, {1}), (9, 0.005, set(range(1, 9))), (9, 0, {0})],
)
def test_small_corpora_have_both_splits(
    tokenizer: Path, tmp_path: Path, count: int, share: float, num_validation: set[int]
) -> None:
    """Prevents a small corpus without a validation loss, or without anything to train on."""
    path = write_corpus(tmp_path / "a.jsonl", [document(seed) for seed in range(count)])
    options = PrepareOptions(validation=share)
    prepare_source("jsonl", [str(path)], tmp_path / "out", tokenizer, options)
    splits = ShardSet.open(tmp_path / "out").manifest["splits"]
    assert splits["validation"]["sequences"] in num_validation
    assert splits["train"]["sequences"] == count - splits["validation"]["sequences"] >= 1


def book(seed: int, lines: int) -> str:
    """Return a text of lines of about 70 characters."""
    return "\n".join(document(1000 * seed + index, 64) for index in range(lines))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [[100], [100, 1], [1, 100, 2], [60, 80], [30, 50, 40, 60], [20] * 10, [300] + [1] * 40]
)
def test_long_documents_give_the_share_and_no_more(
    tokenizer: Path, tmp_path: Path, sizes: list[int]
) -> None:
    """Prevents a book that is held out whole, next to nothing held out, and text in both splits."""
    texts = [book(index, size) for index, size in enumerate(sizes)]
    for name, part in (("corpus", texts), ("reversed", texts[::-1])):
        path = write_corpus(tmp_path / f"{name}.jsonl", part)
        report = prepare_source("jsonl", [str(path)], tmp_path / name, tokenizer, PrepareOptions())
    train, validation = (read_split(tmp_path / "corpus", name) for name in SPLITS)
    assert validation == read_split(tmp_path / "reversed", "validation")
    # Each text is in one split, or its first lines are in one and the others in the other.
    divided = {f"{start}\n{end}" for start in train for end in validation} & set(texts)
    assert train ^ validation == train | validation and len(divided) == report["divided"]
    assert len(divided | train | validation) == len(texts) + 2 * len(divided)
    assert set(texts) - divided <= train | validation
    splits = report["splits"]
    assert 0.05 < splits["validation"]["tokens"] / report["tokens"] <= 0.1
    assert sum(split["characters"] for split in splits.values()) == report["characters"]
    printed = format_report(report, tmp_path / "reversed")
    assert ("without their end" in printed) == bool(divided)
    for name in SPLITS:
        tokens = ShardSet.open(tmp_path / "corpus").load_text(name).num_tokens
        assert f"  {name} {splits[name]['sequences']:,} documents, {tokens:,} tokens (" in printed


@pytest.mark.parametrize("holds_out_title", [False, True])
def test_text_that_cannot_be_divided_stays_in_train(
    tokenizer: Path, tmp_path: Path, holds_out_title: bool
) -> None:
    """Prevents a title to train on while the only paragraph below it is held out."""
    title, paragraph = document(1, 30), document(0, 900).replace("。", "")
    texts = [title, paragraph] if holds_out_title else [f"{title}\n{paragraph}"]
    path = write_corpus(tmp_path / "a.jsonl", texts)
    prepare_source("jsonl", [str(path)], tmp_path / "out", tokenizer, PrepareOptions())
    assert read_split(tmp_path / "out", "validation") == ({title} if holds_out_title else set())


def test_copies_of_a_divided_document_are_divided_alike(tokenizer: Path, tmp_path: Path) -> None:
    """Prevents held-out text that a copy, kept on purpose, has in train."""
    path = write_corpus(tmp_path / "a.jsonl", [book(0, 20), book(1, 20), book(0, 20), book(1, 20)])
    # The dev split of another corpus stays as it is.
    dev = write_corpus(tmp_path / "dev.jsonl", [book(0, 20), book(1, 20)])
    groups = [SourceGroup("jsonl", (str(path),)), SourceGroup("jsonl", (str(dev),), (str(dev),))]
    options = PrepareOptions(dedup=DedupOptions(exact=False, near=False))
    prepare_groups(groups, tmp_path / "out", tokenizer, options)
    train, validation = (read_split(tmp_path / "out", name) for name in SPLITS)
    books = {book(0, 20), book(1, 20)}
    assert books <= train and books <= validation
    ends = validation - books
    assert ends and not any(end in text for text in train - books for end in ends)


@pytest.mark.slow
def test_short_documents_are_held_out_by_digest_alone(tokenizer: Path, tmp_path: Path) -> None:
    """Prevents the splits of ordinary corpora from changing with the lengths of documents."""
    texts = [document(seed, 30 + seed % 200) for seed in range(600)]
    path = write_corpus(tmp_path / "a.jsonl", texts)
    prepare_source("jsonl", [str(path)], tmp_path / "out", tokenizer, PrepareOptions())
    expected = {text for text in texts if int(text_digest(text)[0]) < 0.1 * (1 << 64)}
    assert 0 < len(expected) == len(expected & read_split(tmp_path / "out", "validation"))
    assert set(texts) - expected == read_split(tmp_path / "out", "train")


@pytest.mark.slow
def test_long_document_that_is_not_selected_stays_whole(tokenizer: Path, tmp_path: Path) -> None:
    """Prevents a document that is divided although the short ones are held out as usual."""
    texts = [document(seed) for seed in range(200)]
    selected = [text for text in texts if int(text_digest(text)[0]) < 0.1 * (1 << 64)]
    long = next(
        text for text in (book(seed, 40) for seed in range(99)) if text_digest(text)[0] >> 63
    )
    # Half of the share is selected.
    texts = [*selected[:5], *[text for text in texts if text not in selected][:95], long]
    path = write_corpus(tmp_path / "a.jsonl", texts)
    report = prepare_source("jsonl", [str(path)], tmp_path / "out", tokenizer, PrepareOptions())
    assert report["divided"] == 0 and long in read_split(tmp_path / "out", "train")
    assert read_split(tmp_path / "out", "validation") == set(selected[:5])


def test_long_conversations_are_held_out_whole(root: Path, tmp_path: Path) -> None:
    """Prevents an answer without its question."""
    records = [
        {"messages": [{"role": role, "content": book(seed, 20)} for role in ("user", "assistant")]}
        for seed in range(2)
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in records))
    report = prepare_source(
        "openai", [str(path)], tmp_path / "out", root / "assets/tokenizer", PrepareOptions()
    )
    assert [report["splits"][name]["sequences"] for name in SPLITS] == [1, 1]
    assert report["divided"] == 0


@pytest.mark.slow
def test_memory_is_constant_in_corpus_size(tokenizer: Path, tmp_path: Path, root: Path) -> None:
    """Prevents a corpus whose ids are all in memory as Python numbers."""
    peaks = []
    for scale in (1, 5):
        texts = [f"{seed} " + document(seed % 97, 900) for seed in range(250 * scale)]
        path, out = write_corpus(tmp_path / f"{scale}.jsonl", texts), tmp_path / f"{scale}.out"
        # Without near duplicates all documents stay. One worker encodes in the parent process.
        options = ["--tokenizer", str(tokenizer), "--dedup.near", "false", "--workers", "1"]
        arguments = ["--source", "jsonl", "--input", str(path), *options, "--out", str(out)]
        assert run(arguments, root).returncode == 0
        report = json.loads((out / "report.json").read_text())
        assert report["kept"] == 250 * scale
        peaks.append(report["peak_memory_parent"])
    # 2.7 MB of text more, which is over 25 MB as Python lists of ids.
    assert peaks[1] - peaks[0] < 8 << 20
