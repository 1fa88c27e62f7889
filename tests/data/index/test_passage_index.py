"""Search over the segments of an index."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from data.index import build
from data.index.build import write_index
from data.index.options import WindowOptions
from data.index.passage_index import K1, B, PassageIndex, UnknownQueryError
from data.index.passages import Passage
from data.index.tokens import character_tokens
from tests.helpers.index import random_passages


def index_of(
    passages: Sequence[Passage], folder: Path, monkeypatch: pytest.MonkeyPatch, segment_size: int
) -> PassageIndex:
    """Return an index of passages in segments of a certain size."""
    monkeypatch.setattr(build, "MAX_PASSAGES", segment_size)
    return write_index(iter(passages), folder, WindowOptions(), character_tokens)


def tokens_of(text: str) -> list[int]:
    """Return the tokens of one text."""
    return character_tokens([text])[0].tolist()


def naive_scores(query: str, passages: Sequence[Passage]) -> list[float]:
    """Return the BM25 score of each passage, by the formula."""
    counts = [Counter(tokens_of(passage.titled_text)) for passage in passages]
    lengths = [count.total() for count in counts]
    mean_length = sum(lengths) / len(lengths)
    scores = [0.0] * len(passages)
    for token in tokens_of(query):
        frequency = sum(token in count for count in counts)
        idf = math.log(1 + (len(passages) - frequency + 0.5) / (frequency + 0.5))
        for number, (count, length) in enumerate(zip(counts, lengths, strict=True)):
            saturation = K1 * (1 - B + B * length / mean_length)
            scores[number] += idf * count[token] / (count[token] + saturation)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("segment_size", [7, 100])
def test_scores_are_bm25_over_all_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, segment_size: int
) -> None:
    """Prevents document frequencies or mean lengths of one segment in the scores, and wrong ranks.

    Repeated tokens of a query count as often as they occur.
    """
    passages = random_passages(100)
    index = index_of(passages, tmp_path, monkeypatch, segment_size)
    for query in ["".join(random.Random(n).choices("天地人日月山水", k=6)) for n in range(8)]:
        scores = naive_scores(query, passages)
        ranking = sorted(range(100), key=lambda number: (-round(scores[number], 5), number))
        hits = index.search(query, 10)
        assert [hit.score for hit in hits] == pytest.approx(sorted(scores)[::-1][:10], rel=1e-5)
        assert [hit.source for hit in hits] == [passages[n].source for n in ranking[:10]]


def test_share_is_of_the_weight_of_the_query(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a share that leaves out the words no passage has, or repeated ones."""
    index = index_of(random_passages(50), tmp_path, monkeypatch, 7)
    for known, query in (("天地", "天地 天地"), ("天地", "天地 quantum")):
        (hit,), (known_hit,) = index.search(query, 1), index.search(known, 1)
        is_repeated = query.count(known) == 2
        assert hit.score == pytest.approx(known_hit.score * (1 + is_repeated), rel=1e-5)
        assert (hit.share == pytest.approx(known_hit.share, rel=1e-5)) == is_repeated
        assert 0 < hit.share <= known_hit.share * 1.0001 < 1


@pytest.mark.slow
def test_scores_are_those_of_bm25s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a formula that differs from the usual one: bm25s has one index over everything."""
    bm25s = pytest.importorskip("bm25s")
    passages = random_passages(100)
    index = index_of(passages, tmp_path, monkeypatch, 7)
    retriever = bm25s.BM25(k1=K1, b=B, method="lucene")
    corpus = [list(map(str, tokens_of(p.titled_text))) for p in passages]
    retriever.index(corpus, show_progress=False)
    for query in ("天地人", "日月同辉", "山山水水"):
        tokens = list(map(str, tokens_of(query)))
        _, scores = retriever.retrieve([tokens], k=100, show_progress=False)
        hits = index.search(query, 100)
        assert [hit.score for hit in hits] == pytest.approx(scores[0][: len(hits)], rel=1e-5)


def test_query_without_known_token_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents an empty answer, as if there were no passage, to a question in other words."""
    index = index_of(random_passages(10), tmp_path, monkeypatch, 7)
    for query in ("quantum", "龘", "？！", "", "\ud800"):
        with pytest.raises(UnknownQueryError, match="no passage has a word of"):
            index.search(query, 5)
    assert index.search("quantum 天", 5)


def test_equal_scores_are_in_the_order_of_adding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents an order that depends on the division into segments, and more hits than asked."""
    passages = [Passage("", "天地", f"a:{number}") for number in range(30)]
    for segment_size in (4, 100):
        index = index_of(passages, tmp_path / str(segment_size), monkeypatch, segment_size)
        assert [hit.source for hit in index.search("天", 6)] == [f"a:{n}" for n in range(6)]
        assert len(index.search("天", 100)) == 30


def test_passages_without_any_token_of_the_query_are_no_hits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents a list that is filled up with passages that have nothing to do with the query."""
    passages = [Passage("", text, "a:1") for text in ("天", "地", "！", "人")]
    index = index_of(passages, tmp_path, monkeypatch, 2)
    assert [hit.text for hit in index.search("天人", 10)] == ["天", "人"]


def test_many_occurrences_in_a_passage_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents counts that wrap around at 256."""
    passages = [Passage("", text, "a:1") for text in ("哈" * 256, "哈好", "好" * 300)]
    index = index_of(passages, tmp_path, monkeypatch, 100)
    scores = {hit.text: hit.score for hit in index.search("哈", 10)}
    assert [scores[passage.text] for passage in passages[:2]] == pytest.approx(
        naive_scores("哈", passages)[:2], rel=1e-5
    )
