"""Division of documents into passages."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.index.options import WindowOptions
from data.index.passages import Passage, extract_document, split_windows
from data.records import Conversation, Document, Record, Summary, Turn

SENTENCES = [f"第{number}句话讲的是一件事情。" for number in range(100)]


def test_short_document_is_one_passage() -> None:
    """Prevents a text of the length of a window from being cut."""
    text = "一" * 300
    assert split_windows(text, WindowOptions()) == [text]
    assert split_windows(f"\n {text} ", WindowOptions()) == [text]
    assert split_windows(" \n", WindowOptions()) == []


def test_windows_are_whole_sentences_of_about_equal_length() -> None:
    """Prevents cut sentences, and a last window of a few characters."""
    windows = split_windows("".join(SENTENCES), WindowOptions())
    assert "".join(windows) == "".join(SENTENCES)
    assert all(window.endswith("。") for window in windows)
    assert max(map(len, windows)) - min(map(len, windows)) < 2 * len(SENTENCES[-1])
    assert max(map(len, windows)) <= 300


def test_text_without_sentence_ends_is_cut_anyway() -> None:
    """Prevents a long passage, or an empty one, where the next sentence end is far away."""
    windows = split_windows("字" * 100 + "。" + "字" * 400, WindowOptions(characters=100))
    assert [len(window) for window in windows] == [101, 66, 83, 84, 83, 84]


def test_overlap_repeats_whole_sentences() -> None:
    """Prevents half a sentence, or none, at the beginning of a window that overlaps."""
    windows = split_windows("".join(SENTENCES), WindowOptions(overlap=30))
    without = split_windows("".join(SENTENCES), WindowOptions())
    for before, window, plain in zip(windows, windows[1:], without[1:], strict=False):
        repeated = window.removesuffix(plain)
        assert 0 < len(repeated) <= 30 and before.endswith(repeated)
        assert re.match("第\\d+句", window)


@pytest.mark.slow
@given(st.text("字。！”\n .x", max_size=200), st.integers(20, 50), st.integers(0, 19))
def test_no_character_is_lost_and_no_window_is_long(
    text: str, characters: int, overlap: int
) -> None:
    """Prevents lost text, long windows where no sentence ends, and overlap beyond its limit."""
    plain = split_windows(text, WindowOptions(characters=characters))
    assert "".join("".join(plain).split()) == "".join(text.split())
    assert all(window.strip() and len(window) <= 2 * characters for window in plain)
    overlapping = split_windows(text, WindowOptions(characters=characters, overlap=overlap))
    assert all(len(window) <= 2 * characters + overlap for window in overlapping)


@pytest.mark.parametrize(
    ("record", "has_title_line", "expected"),
    [
        (Document("数学\n\n数学是研究数量的学科。"), True, ("数学", "\n数学是研究数量的学科。")),
        (Document("数学\n\n数学是研究数量的学科。"), False, ("", "数学\n\n数学是研究数量的学科。")),
        (Document("只有标题"), True, ("", "只有标题")),
        (Document("<b>粗体</b>的字"), False, ("", "粗体的字")),
        (Summary("文章的正文", " 标题 "), False, ("标题", "文章的正文")),
        (Conversation((Turn("问", "答"),), "资料"), False, ("", "资料")),
        (Conversation((Turn("问", "答"),)), False, ("", "\n\n问\n答")),
    ],
)
def test_title_and_text_of_each_kind(
    record: Record, has_title_line: bool, expected: tuple[str, str]
) -> None:
    """Prevents questions of a reading test among the passages, and titles lost or repeated."""
    assert extract_document(record, has_title_line) == expected


def test_title_stands_in_front_of_the_indexed_text() -> None:
    """Prevents a window of an article that does not name its subject from being missed."""
    assert Passage("数学", "它研究数量。", "a:1").titled_text == "数学\n它研究数量。"
    assert Passage("", "它研究数量。", "a:1").titled_text == "它研究数量。"
