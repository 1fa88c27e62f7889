"""A text that shares a long passage with a test set is found, whatever its form; others are not."""

import random
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare import contamination
from data.prepare.contamination import NGRAM_SIZE, HeldOutNgrams, hash_ngrams, write_ngrams
from tests.data.prepare.conftest import document

TEST_TEXT = "为了解决辅助决策系统中模型、知识和数据的选择问题,在开发过程中引入测试驱动过程模型ABC."


def held_out(folder: Path, texts: list[str]) -> HeldOutNgrams:
    write_ngrams(texts, folder / "ngrams.npy")
    return HeldOutNgrams(folder / "ngrams.npy")


@pytest.mark.parametrize(
    "text",
    [
        f"前面是别的话。{TEST_TEXT}后面也是。",
        "模型 知识 和 数据 的 选择 问题 在 开发",
        "模型，知识和数据的选择问题——在开发",
        "模型、知識和數據的選擇問題,在開發",
        "程中引入测试驱动过程模型ａｂｃ",
        "为了解决辅助决策系统中模型" + "完全不同的另一句话" * 10,
    ],
)
def test_passage_of_a_test_set_is_found(tmp_path: Path, text: str) -> None:
    """Prevents a leak through another script, width, case, or other spaces and punctuation."""
    assert held_out(tmp_path, [TEST_TEXT, "别的"]).has_any(text)


@pytest.mark.parametrize(
    "text",
    ["", "模型、知识和数据的选择问题", "决策系统", "他说的是另外一件完全不同的事情，和系统无关。"],
)
def test_other_texts_are_not(tmp_path: Path, text: str) -> None:
    """Prevents the loss of texts that share a phrase with a test set."""
    assert not held_out(tmp_path, [TEST_TEXT]).has_any(text)
    assert not held_out(tmp_path, []).has_any(text)


def test_ngrams_are_those_of_a_set_of_strings(tmp_path: Path) -> None:
    """Prevents n-grams that are lost where files are merged, and hashes that collide."""
    # A number would count as one unit.
    texts = [document(seed, 300).split("第")[0] for seed in range(40)]
    ngrams = held_out(tmp_path, texts)
    letters = ["".join(filter(str.isalnum, text)) for text in texts]
    strings = {
        text[start : start + NGRAM_SIZE]
        for text in letters
        for start in range(len(text) - NGRAM_SIZE + 1)
    }
    assert len(ngrams) == len(strings)
    chance = random.Random(0)
    for other in (document(seed, 300) for seed in range(40, 80)):
        place, start = chance.randrange(40), chance.randrange(250)
        window = letters[place][start : start + NGRAM_SIZE]
        assert ngrams.has_any(other + window)
        assert not ngrams.has_any(other)
    assert len(hash_ngrams(letters[0][:NGRAM_SIZE])) == 1


def test_too_many_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a preparation that fills the memory because a training set was named as a test."""
    monkeypatch.setattr(contamination, "MAX_NGRAMS", 100)
    with pytest.raises(UserError, match="more than 100 different passages"):
        write_ngrams([document(1)], tmp_path / "ngrams.npy")
