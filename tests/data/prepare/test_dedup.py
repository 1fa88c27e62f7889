"""Deduplication: copies are dropped, distinct documents stay, memory is flat."""

import gzip
import itertools
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import orjson
import pytest

from data.prepare import dedup
from data.prepare.dedup import (
    EXACT_DUPLICATE,
    NEAR_DUPLICATE,
    UNIQUE,
    Deduplicator,
    choose_lsh_bands,
    hash_shingles,
    minhash_permutations,
    text_digest,
)
from data.prepare.options import DedupOptions


def signature(text: str) -> np.ndarray:
    return dedup.minhash_signature(text, minhash_permutations())


def find_labels(
    folder: Path, texts: list[str], options: DedupOptions | None = None, batch: int = 100
) -> list[int]:
    labels = Deduplicator(folder / "dedup", options or DedupOptions())
    near = options is None or options.near
    for start in range(0, len(texts), batch):
        batch_texts = texts[start : start + batch]
        signed = np.stack([signature(text) for text in batch_texts]) if near else None
        labels.add(np.stack([text_digest(text) for text in batch_texts]), signed)
    return [int(value) for value in labels.find_duplicates()]


@pytest.fixture(scope="module")
def articles(shared: Path) -> list[str]:
    with gzip.open(shared / "data" / "pretrain" / "lctt_published.jsonl.gz") as file:
        texts = [orjson.loads(line)["text"] for line in itertools.islice(file, 400)]
    return [text for text in texts if len(text) > 300]


def jaccard(one: str, other: str) -> float:
    sets = []
    for text in (one, other):
        letters = "".join(c for c in text if c.isalnum())
        sets.append({letters[i : i + 5] for i in range(len(letters) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def edited(text: str, share: float, seed: int) -> str:
    chance = random.Random(seed)
    return "".join(
        chr(chance.randrange(0x4E00, 0x9000)) if chance.random() < share else c for c in text
    )


@pytest.mark.slow
def test_signatures_estimate_the_true_similarity(articles: list[str]) -> None:
    """Prevents a hash that distorts the estimated similarity."""
    pairs = [
        (text, edited(text, share, 1)) for text in articles[:40] for share in (0.005, 0.02, 0.05)
    ]
    errors = np.array([(signature(a) == signature(b)).mean() - jaccard(a, b) for a, b in pairs])
    assert abs(errors.mean()) < 0.015
    assert errors.std() < 0.06


def test_signatures_match_datasketch() -> None:
    """Prevents other permutations, and blocks from changing a signature."""
    from datasketch import MinHash

    hashes = hash_shingles("".join(chr(0x4E00 + i * 37 % 5000) for i in range(900)))
    a, b = MinHash(num_perm=dedup.NUM_PERMUTATIONS).permutations
    assert (minhash_permutations() == [a, b]).all()
    expected = (hashes[:, None] * a + b).min(axis=0)
    assert (signature("".join(chr(0x4E00 + i * 37 % 5000) for i in range(900))) == expected).all()


@pytest.mark.slow
def test_near_duplicates_are_removed_and_distinct_articles_kept(
    articles: list[str], tmp_path: Path
) -> None:
    """Prevents copies with small edits from staying, and other articles from being dropped."""
    copies = [edited(text, 0.01, index) for index, text in enumerate(articles)]
    labels = find_labels(tmp_path, articles + copies)
    # Near duplicates among the originals are few; each of them is one by the true measure too.
    originals = labels[: len(articles)]
    assert originals.count(UNIQUE) > 0.98 * len(articles)
    similar = [index for index, text in enumerate(articles) if jaccard(text, copies[index]) > 0.88]
    num_dropped = sum(labels[len(articles) + index] == NEAR_DUPLICATE for index in similar)
    assert len(similar) > 100
    assert num_dropped > 0.97 * len(similar)


@pytest.mark.slow
def test_articles_sharing_half_their_text_are_kept(articles: list[str], tmp_path: Path) -> None:
    """Prevents an article that quotes another one from being dropped."""
    long = [text[:1000] for text in articles if len(text) >= 1500]
    halves = [
        text[:700] + other[700:1000] for text, other in zip(long, long[1:] + long[:1], strict=True)
    ]
    assert max(jaccard(a, b) for a, b in zip(long, halves, strict=True)) < 0.75
    labels = find_labels(tmp_path, long + halves)
    assert labels[len(long) :].count(UNIQUE) >= 0.97 * len(halves)


def test_exact_duplicates_ignore_whitespace_and_keep_first(tmp_path: Path) -> None:
    """Prevents reformatted copies from staying."""
    texts = ["甲乙丙丁", "戊己庚辛", "甲乙 丙丁\n", "甲乙丙丁。", "戊己庚辛"]
    assert find_labels(tmp_path, texts, DedupOptions(near=False)) == [
        UNIQUE,
        UNIQUE,
        EXACT_DUPLICATE,
        UNIQUE,
        EXACT_DUPLICATE,
    ]


def test_texts_without_shingles_are_not_near_duplicates(tmp_path: Path) -> None:
    """Prevents all texts with the empty signature from being dropped but one."""
    texts = ["甲乙", "丙丁", "————", "！！！！！！！", "甲乙"]
    assert find_labels(tmp_path, texts) == [UNIQUE, UNIQUE, UNIQUE, UNIQUE, EXACT_DUPLICATE]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (DedupOptions(near=False), [UNIQUE, EXACT_DUPLICATE, UNIQUE]),
        (DedupOptions(exact=False), [UNIQUE, NEAR_DUPLICATE, NEAR_DUPLICATE]),
        (DedupOptions(exact=False, near=False), [UNIQUE, UNIQUE, UNIQUE]),
    ],
)
def test_each_dedup_kind_can_be_disabled(
    tmp_path: Path, options: DedupOptions, expected: list[int]
) -> None:
    """Prevents an option from having no effect."""
    text = "".join(chr(0x4E00 + i * 7) for i in range(2000))
    assert find_labels(tmp_path, [text, text, text[:1990] + "一二三"], options) == expected


@pytest.mark.slow
def test_dedup_is_independent_of_batching_and_partitioning(
    articles: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents ids that depend on the number of workers."""
    texts = articles + [edited(text, 0.01, 3) for text in articles[::3]] + articles[::5]
    expected = find_labels(tmp_path / "a", texts)
    assert {UNIQUE, EXACT_DUPLICATE, NEAR_DUPLICATE} == set(expected)
    monkeypatch.setattr(dedup, "_PARTITION_SIZE", 50)
    assert find_labels(tmp_path / "b", texts, batch=7) == expected


@pytest.mark.slow
def test_many_equal_signatures_take_linear_time(tmp_path: Path) -> None:
    """Prevents all pairs of a page that occurs 50,000 times from being compared."""
    count = 50_000
    signatures = np.tile(signature("一二三四五六七八九十" * 20), (count, 1))
    digests = np.arange(2 * count, dtype=np.uint64).reshape(-1, 2)
    labels = Deduplicator(tmp_path / "dedup", DedupOptions())
    labels.add(digests, signatures)
    result = labels.find_duplicates()
    assert result[0] == UNIQUE
    assert (result[1:] == NEAR_DUPLICATE).all()


@pytest.mark.slow
def test_long_documents_use_bounded_shingle_sample() -> None:
    """Prevents a book from taking a thousand times as long as an article."""
    text = "".join(chr(random.Random(1).randrange(0x4E00, 0x9000)) for _ in range(10)) + "".join(
        chr(0x4E00 + (i * i) % 20000) for i in range(300_000)
    )
    assert len(hash_shingles(text)) <= dedup.MAX_SHINGLES
    assert len(hash_shingles("一" * 100_000)) == 1


def test_lsh_bands_find_pairs_above_threshold() -> None:
    """Prevents pairs above the threshold from being missed."""
    for threshold in (0.6, 0.8, 0.9):
        count, rows = choose_lsh_bands(threshold)
        assert count * rows <= dedup.NUM_PERMUTATIONS
        assert 1 - (1 - (threshold + 0.05) ** rows) ** count > 0.95


def test_lsh_bands_match_datasketch() -> None:
    """Prevents other documents from being dropped than by the bands of datasketch."""
    from datasketch import MinHashLSH

    for threshold in (0.5, 0.65, 0.8, 0.95):
        index = MinHashLSH(threshold, num_perm=dedup.NUM_PERMUTATIONS, weights=(0.05, 0.95))
        assert choose_lsh_bands(threshold) == (index.b, index.r)
    # datasketch refuses one band, which finds exactly the equal signatures.
    assert choose_lsh_bands(1.0) == (1, dedup.NUM_PERMUTATIONS)


_MEMORY = """
import resource, sys
import numpy as np
from pathlib import Path
from data.prepare import dedup
dedup._PARTITION_SIZE = 1 << 13
found = dedup.Deduplicator(Path(sys.argv[1]), dedup.DedupOptions())
random = np.random.default_rng(0)
for _ in range(int(sys.argv[2])):
    signatures = random.integers(0, 1 << 32, (5000, dedup.NUM_PERMUTATIONS), dtype=np.uint32)
    signatures[1::50] = signatures[::50]
    found.add(random.integers(0, 1 << 63, (5000, 2), dtype=np.uint64), signatures)
gone = (found.find_duplicates() == dedup.NEAR_DUPLICATE).sum()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, gone)
"""


@pytest.mark.slow
def test_memory_stays_flat_in_the_number_of_documents(root: Path, tmp_path: Path) -> None:
    """Prevents a large corpus from filling the memory."""
    peaks = []
    for batches in (2, 10):
        arguments = [sys.executable, "-c", _MEMORY, str(tmp_path / str(batches)), str(batches)]
        run = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
        peak, num_dropped = map(int, run.stdout.split())
        peaks.append(peak)
        assert num_dropped == batches * 100
    # 40,000 documents more are 20 MB of signatures and 5 MB of bands.
    assert peaks[1] - peaks[0] < 12 << 20
