"""The trigram baseline against a dictionary implementation of the same formulas."""

import gzip
import json
import math
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from common.files import write_manifest
from data.sequences import SequenceWriter
from data.shards import SHARD_FORMAT, ShardSet
from evaluate.measures.trigram import score_trigram_baseline
from evaluate.metrics import kneser_ney
from evaluate.metrics.kneser_ney import compute_probabilities
from model.tokenizer import load_tokenizer
from model.tokenizer.base import Tokenizer
from tests.helpers import processes


class Stream:
    """A split in memory."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids

    @property
    def num_tokens(self) -> int:
        return len(self._ids)

    def read_stream(self, start: int, stop: int) -> np.ndarray:
        return self._ids[start:stop].astype(np.int64)


class BruteForce:
    """Interpolated Kneser-Ney from the paper, with one dictionary per order."""

    def __init__(self, ids: list[int], vocabulary_size: int) -> None:
        self.size = vocabulary_size
        trigrams = Counter(zip(ids, ids[1:], ids[2:], strict=False))
        bigrams = Counter(gram[1:] for gram in trigrams)
        self.orders = [Counter(gram[1:] for gram in bigrams), bigrams, trigrams]
        self.discounts = [self._discount(order) for order in self.orders]

    @staticmethod
    def _discount(order: Counter[tuple[int, ...]]) -> float:
        once, twice = (sum(count == times for count in order.values()) for times in (1, 2))
        return once / (once + 2 * twice) if once else 0.5

    def probability(self, gram: tuple[int, ...]) -> float:
        if not gram:
            return 1 / self.size
        order, discount = self.orders[len(gram) - 1], self.discounts[len(gram) - 1]
        followers = [count for other, count in order.items() if other[:-1] == gram[:-1]]
        lower = self.probability(gram[1:])
        if not followers:
            return lower
        discounted_count = max(order[gram] - discount, 0)
        return (discounted_count + discount * len(followers) * lower) / sum(followers)


def skewed(seed: int, length: int, vocabulary_size: int) -> np.ndarray:
    """Return ids of which some are common, some rare and some absent."""
    return (np.random.default_rng(seed).random(length) ** 3 * vocabulary_size * 0.8).astype(
        np.uint16
    )


@pytest.mark.parametrize(
    ("seed", "length", "size"), [(0, 3, 5), (1, 40, 4), (2, 300, 12), (3, 800, 30), (4, 500, 2)]
)
def test_trigram_probabilities_match_dictionary_implementation(
    seed: int, length: int, size: int
) -> None:
    """Catch a wrong discount, continuation count, context total or look-up."""
    ids = skewed(seed, length, size)
    reference = BruteForce(ids.tolist(), size)
    random = np.random.default_rng(seed + 100).integers(0, size, (200, 3))
    queries = np.concatenate(
        [np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1)[:200].astype(np.int64), random]
    )
    queries[::7, 0] = -1
    expected = [
        reference.probability(tuple(gram[1:] if gram[0] < 0 else gram)) for gram in queries.tolist()
    ]
    probabilities, discounts = compute_probabilities(Stream(ids), queries, size)
    np.testing.assert_allclose(probabilities, expected, rtol=0, atol=1e-10)
    np.testing.assert_allclose(discounts, reference.discounts, rtol=0, atol=1e-15)


@pytest.mark.parametrize("context", ["seen", "pair never seen", "middle never seen", "one token"])
def test_the_probabilities_of_all_tokens_sum_to_one(context: str) -> None:
    """Catch lost or doubled probability mass, and tokens without any."""
    size, ids = 40, skewed(5, 600, 40)
    pairs = {"seen": ids[10:12], "one token": [-1, ids[3]], "middle never seen": [1, size - 1]}
    seen = set(zip(ids.tolist(), ids[1:].tolist(), strict=False))
    pairs["pair never seen"] = next(
        (u, v) for u in ids.tolist() for v in ids.tolist() if (u, v) not in seen
    )
    queries = np.array([[*pairs[context], token] for token in range(size)], dtype=np.int64)
    probabilities, _ = compute_probabilities(Stream(ids), queries, size)
    assert probabilities.min() > 0
    assert math.isclose(probabilities.sum(), 1, abs_tol=1e-12)


def test_chunked_counting_matches_single_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch trigrams lost between reads, and counts that depend on the partition."""
    size, ids = 50, skewed(6, 3000, 50)
    queries = np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1).astype(np.int64)
    whole, discounts = compute_probabilities(Stream(ids), queries, size)
    ranges = list(kneser_ney._partition_ids(np.bincount(ids, minlength=size), 100))
    assert len(ranges) > 10, "the limit must really split the counting"
    assert [low for low, _ in ranges] == [0, *(high for _, high in ranges[:-1])] and ranges[-1][
        1
    ] == size
    monkeypatch.setattr(kneser_ney, "READ_CHUNK_TOKENS", 37)
    parts, part_discounts = compute_probabilities(
        Stream(ids), queries, size, max_partition_positions=100
    )
    np.testing.assert_array_equal(parts, whole)
    assert part_discounts == discounts


def test_trigram_keys_do_not_collide_for_largest_ids() -> None:
    """Catch ids of a vocabulary of 65,000 that overlap within a key."""
    size = 65_000
    ids = np.tile(np.array([64_999, 0, 64_999, 64_998, 1, 0, 64_999], dtype=np.uint16), 3)
    queries = np.stack([ids[:-2], ids[1:-1], ids[2:]], axis=1).astype(np.int64)
    reference = BruteForce(ids.tolist(), size)
    probabilities, _ = compute_probabilities(Stream(ids), queries, size)
    np.testing.assert_allclose(
        probabilities, [reference.probability(tuple(gram)) for gram in queries.tolist()], atol=1e-10
    )


def write_shards(folder: Path, tokenizer: Tokenizer, splits: dict[str, list[str]]) -> ShardSet:
    folder.mkdir()
    for split, texts in splits.items():
        # Small shards, so that the stream crosses from one file to the next.
        writer = SequenceWriter(folder, split, tokenizer.vocab_size, shard_tokens=1000)
        # Without bos in the validation split its first token has characters, which the score must
        # leave out.
        start = [tokenizer.bos_id] if split == "train" else []
        for ids in tokenizer.encode_batch(texts):
            writer.add(np.array([*start, *ids, tokenizer.eos_id]))
        writer.close()
    (folder / "tokenizer.model").write_bytes(tokenizer.serialized)
    write_manifest(folder, {"format": SHARD_FORMAT, "kind": "documents"})
    return ShardSet.open(folder)


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    tokenizer = load_tokenizer(shared / "tokenizer" / "llama-chinese-65k.model")
    with gzip.open(
        shared / "data" / "pretrain" / "mnbvc_qa.jsonl.gz", "rt", encoding="utf-8"
    ) as lines:
        texts = [json.loads(line)["答"] for line in islice(lines, 24)]
    folder = tmp_path_factory.mktemp("real") / "set"
    return write_shards(folder, tokenizer, {"train": texts[4:], "validation": texts[:4]})


@pytest.mark.slow
def test_trigram_scores_of_real_shard_set(real: ShardSet) -> None:
    """Catch a position that is skipped or scored twice, and characters of unscored ids."""
    train, validation = real.load_text("train"), real.load_text("validation")
    tokenizer = real.load_tokenizer()
    ids = validation.read_stream(0, validation.num_tokens).tolist()[:40]
    reference = BruteForce(train.read_stream(0, train.num_tokens).tolist(), tokenizer.vocab_size)
    score = score_trigram_baseline(real)
    assert score.tokens == validation.num_tokens - 1
    text = tokenizer.decode(validation.read_stream(1, validation.num_tokens).tolist())
    assert score.characters == len(text)
    assert math.isclose(score.perplexity, math.exp(score.loss))
    assert math.isclose(
        score.bits_per_character, score.loss * score.tokens / math.log(2) / len(text)
    )
    queries = np.array([[-1, *ids[:2]], *zip(ids, ids[1:], ids[2:], strict=False)])
    expected = [
        reference.probability(tuple(ids[max(i - 2, 0) : i + 1])) for i in range(1, len(ids))
    ]
    probabilities, _ = compute_probabilities(train, queries, tokenizer.vocab_size)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-10, atol=0)
    assert 3 < score.loss < math.log(tokenizer.vocab_size), (
        "worse than guessing: something is misaligned"
    )


@pytest.mark.slow
def test_the_loss_is_the_mean_over_all_positions(real: ShardSet) -> None:
    """Catch a loss that is not the mean over tokens."""
    train, validation = real.load_text("train"), real.load_text("validation")
    ids = validation.read_stream(0, validation.num_tokens)
    queries = np.stack([np.concatenate([[-1], ids[:-2]]), ids[:-1], ids[1:]], axis=1)
    probabilities, _ = compute_probabilities(train, queries, real.load_tokenizer().vocab_size)
    assert math.isclose(
        score_trigram_baseline(real, max_partition_positions=800).loss,
        -np.log(probabilities).mean(),
        rel_tol=1e-12,
    )


@pytest.mark.slow
def test_command_prints_and_writes_results(real: ShardSet, tmp_path: Path) -> None:
    """Catch a command that fails, and JSON that differs from the output."""
    out = tmp_path / "score.json"
    done = processes.run_command("evaluate.trigram", "--data", str(real.folder), "--json", str(out))
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert f"{figures['loss']:.4f} nats/token" in done.stdout
    assert f"{figures['bits_per_character']:.4f}" in done.stdout
    assert figures["data_fingerprint"] == real.fingerprint


@pytest.mark.slow
def test_too_little_data_gives_one_line_error(shared: Path, tmp_path: Path) -> None:
    """Catch a division by zero for an empty split."""
    tokenizer = load_tokenizer(shared / "tokenizer" / "llama-chinese-65k.model")
    with pytest.raises(UserError, match="validation tokens"):
        score_trigram_baseline(write_shards(tmp_path / "a", tokenizer, {"train": ["天气很好"]}))
    with pytest.raises(UserError, match="training split has 2 tokens"):
        score_trigram_baseline(
            write_shards(tmp_path / "b", tokenizer, {"train": [""], "validation": ["天气很好"]})
        )


def test_a_set_of_records_is_refused_by_its_kind(tmp_path: Path) -> None:
    """Prevents a message about no tokens for a set that has records and no stored ids."""
    shards = ShardSet(tmp_path, {"kind": "summaries"})
    with pytest.raises(UserError, match="holds summaries, not text"):
        score_trigram_baseline(shards)
