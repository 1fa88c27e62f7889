"""A shard set has the tokenizer's ids and a validation split that the text alone decides."""

import json
from pathlib import Path

import numpy as np
import orjson
import pytest

from data.prepare.options import PrepareOptions
from data.shards import ShardSet
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
