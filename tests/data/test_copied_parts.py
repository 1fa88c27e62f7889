"""Parts of a text that are copied from a passage."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.copied_parts import MIN_COPIED, copied_share, find_copied_parts, find_origins

# Few characters, so that texts repeat parts of each other; with all that is folded or skipped.
TEXTS = st.text(alphabet="甲乙丙國国aAＡ1２ ，。\n", max_size=24)


def parts_of(text: str, passage: str) -> list[str]:
    return [text[start:stop] for start, stop in find_copied_parts(text, passage)]


def _words(text: str) -> list[tuple[str, list[int]]]:
    """The words of a text over the alphabet above, with the positions of their characters."""
    folds = {"國": "国", "A": "a", "Ａ": "a", "２": "2"}
    words: list[tuple[str, list[int]]] = []
    previous = -2
    for position, character in enumerate(text):
        folded = folds.get(character, character)
        if folded in "a12":
            if previous == position - 1:
                word, positions = words.pop()
                words.append((word + folded, [*positions, position]))
            else:
                words.append((folded, [position]))
            previous = position
        elif folded in "甲乙丙国":
            words.append((folded, [position]))
    return words


def _brute_force(text: str, passage: str) -> list[list[int]]:
    """The positions of the characters of each copied part, by trying all pairs of parts."""
    own, other = _words(text), [word for word, _ in _words(passage)]
    length = sum(len(word) for word, _ in own)
    parts = []
    start = 0
    while start < len(own):
        best: list[int] = []
        for stop in range(start + 1, len(own) + 1):
            part = [word for word, _ in own[start:stop]]
            size = len(part)
            if any(other[i : i + size] == part for i in range(len(other) - size + 1)):
                best = [place for _, places in own[start:stop] for place in places]
                longest = stop
        if len(best) >= min(MIN_COPIED, length) and best:
            parts.append(best)
            start = longest
        else:
            start += 1
    return parts


@pytest.mark.slow
@given(TEXTS, TEXTS)
def test_parts_are_those_of_a_brute_force(text: str, passage: str) -> None:
    """Prevents parts that are cut short, overlap, or are compared with space or case."""
    expected = _brute_force(text, passage)
    assert find_copied_parts(text, passage) == [(part[0], part[-1] + 1) for part in expected]
    num_characters = sum(len(word) for word, _ in _words(text))
    share = sum(map(len, expected)) / num_characters if num_characters else None
    assert copied_share(text, passage) == share


@pytest.mark.slow
@given(st.text(), st.text())
def test_any_text_has_ordered_parts(text: str, passage: str) -> None:
    """Prevents errors and positions that drift on scripts whose characters fold to several."""
    ends = [end for span in find_copied_parts(text, passage) for end in span]
    assert ends == sorted(ends) and all(0 <= end <= len(text) for end in ends)
    assert copied_share(text, text) in (None, 1.0)


def test_what_counts_as_copied() -> None:
    """Prevents chance matches, matches within words and numbers, and differences in spelling."""
    passage = "小驼一九九八年生于上海，2004年赴巴黎(Paris)學習，身高1.75米。"
    assert parts_of("他生于上海， 2004 年到了巴黎paris学习。", passage) == [
        "生于上海， 2004 年",
        "巴黎paris学习",
    ]
    # Fewer than MIN_COPIED characters, unless they are all.
    assert parts_of("我在上海住", passage) == parts_of("不生于上山", passage) == []
    assert parts_of("不生于上海山", passage) == ["生于上海"]
    assert parts_of("上海。", passage) == ["上海"]
    assert parts_of("上山。", passage) == []
    # Parts of words and numbers.
    assert parts_of("200", passage) == parts_of("175", passage) == parts_of("aris", passage) == []
    assert copied_share("", passage) is None
    assert copied_share("…… ！", passage) is None
    assert copied_share("上海", "") == 0.0
    # A lone surrogate, as from bytes on a command line.
    assert copied_share("上海\udcff", "\udcff上海") == 1.0


def test_origins_are_whole_words() -> None:
    """Prevents a mark in the passage on a part of a number, or beside what the answer copies."""
    passage = "编号19980的西湖 ，建于1998年，1998 年前无人居住。"

    def origins(text: str) -> list[str]:
        return [passage[start:stop] for start, stop in find_origins(text, passage)]

    assert origins("1998") == ["1998", "1998"]
    assert find_origins("1998年", passage)[0][0] == passage.index("1998年")
    assert origins("西湖，建") == ["西湖 ，建"]
    assert origins("西湖建于明朝") == ["西湖 ，建于"]
    assert origins("西湖在东边") == origins("980") == origins("") == origins("……") == []


@pytest.mark.parametrize("other", ["甲", "乙"])
def test_repetitive_texts_take_no_longer(other: str) -> None:
    """Prevents quadratic time on the longest passages of a server."""
    start = time.process_time()
    find_copied_parts("甲" * 500, other * 2500 + "甲" * 2500)
    assert time.process_time() - start < 0.5
