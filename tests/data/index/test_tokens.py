"""Tokens of passages and queries."""

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.index.tokens import TOKEN_BITS, character_tokens, fold_text, hash_token


def naive_tokens(text: str) -> list[int]:
    """Return the tokens of a text without traditional or full-width characters, sorted."""
    tokens = []
    for run in re.findall("[\u4e00-\u9fff]+", text):
        tokens += [ord(character) for character in run]
        tokens += [ord(first) << 21 | ord(second) for first, second in pairwise(run)]
    words = re.findall(r"[a-z0-9é]+", text.lower())
    return sorted(tokens + [hash_token(word.encode("utf-32-le")) for word in words])


def tokens_of(text: str) -> list[int]:
    """Return the tokens of one text."""
    return character_tokens([text])[0].tolist()


@pytest.mark.slow
@given(st.lists(st.text("天地人，。 \nabZé09-", max_size=20), min_size=1, max_size=4))
def test_tokens_are_characters_pairs_and_words(texts: list[str]) -> None:
    """Prevents pairs across punctuation or texts, lost words, and tokens of another text."""
    tokens, numbers = character_tokens(texts)
    assert tokens.dtype == np.uint64 and len(tokens) == len(numbers)
    for number, text in enumerate(texts):
        assert sorted(tokens[numbers == number].tolist()) == naive_tokens(text)
    assert all(token < 1 << TOKEN_BITS for token in tokens.tolist())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("臺灣海峽的颱風", "台湾海峡的台风"),
        ("乾隆皇帝後來", "干隆皇帝后来"),
        ("ＧＰＵ１２３", "gpu123"),
        ("Éclair", "éclair"),
        ("\uf900\u2f94", "\u8c48\u8a00"),
    ],
)
def test_script_width_and_case_do_not_matter(one: str, other: str) -> None:
    """Prevents a question in one script from missing a passage in the other."""
    assert tokens_of(one) == tokens_of(other)
    assert fold_text(one) == fold_text(other)


def test_character_is_folded_alike_in_any_context() -> None:
    """Prevents OpenCC's phrases from keeping 乾 in 乾隆 and changing it elsewhere."""
    assert set(tokens_of("乾")) <= set(tokens_of("乾隆"))


def test_text_without_words_has_no_tokens() -> None:
    """Prevents a crash at punctuation, an empty query, and bytes that are not UTF-8."""
    for text in ("", "？！…", " \n", "\ud800", "😀"):
        assert tokens_of(text) == []
    assert len(tokens_of("问\udcff题")) == 2
