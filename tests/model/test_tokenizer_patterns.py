"""Regular expressions that could take for ever are told from those that are in use."""

import pytest

from model.tokenizer.regex_guard import SlowRegexError, check_regex, iter_regexes
from tests.helpers import hf_checkpoints

# Of Llama 3, GPT-2, Qwen 2, GPT-4 (possessive), GPT-4o, DeepSeek, and digits in threes from the right.
IN_USE = [
    hf_checkpoints.LLAMA3_SPLIT_PATTERN,
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    r"\d",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]+[\p{Ll}\p{Lm}]*(?i:'s|'t)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+",
    r"[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+",
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+",
    r"[一-龥ࠀ-一가-퟿]+",
    r"[!-/:-~!-/:-~‘-‟　-。]+",
    r"\d{1,3}(?=(?:\d{3})*\b)",
    r"(?<=\d)(?=(\d{3})+(?!\d))",
    r"[]a(+*]+\[\(+",
    r"[[a-c](+*)+]+\w",
    r"a{,}|{b}|a{2}|\)+|\x{4e00}+",
]


@pytest.mark.parametrize("pattern", IN_USE)
def test_common_tokenizer_regexes_are_accepted(pattern: str) -> None:
    """Good models refused."""
    import tokenizers

    check_regex(pattern)
    tokenizers.Regex(pattern)  # which is one


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*$",
        "(?:a|aa)+$",
        "(a*)*$",
        "((a+))+$",
        "(?i:a+){2,}$",
        "(a?){30}$",
        "(?:b|(?:a+)+)$",
        "a{1,9}+$",
        r"(\p{L}+)*$",
        r"(\(a+\))+$",
        "([)]+)+$",
        "(a+)*?$",
        "x|(a+)+$",
        r"(a)\1+\1$",
        r"(?<w>a+)\g<w>",
        r"(?:\R)+$",
        "(?#[)(a+)+$",
        "(?x)#[\n(a+)+$",
        "(?ix-m:#[\n(a+)+$)",
        r"\c[?(a+)+$",
        r"\C-[?(a+)+$",
        r"\M-\C-[?(a+)+$",
        "(?:aa{1}?)+$",
        "[[a]()+*]b(a+)+$",
        "a*a*a*a*a*$",
        "a?" * 30 + "$",
        "(a|a)" * 30 + "$",
        "a)(b+)+",
    ],
)
def test_catastrophic_backtracking_regexes_raise(pattern: str) -> None:
    """A chat, a server or a preparation that hangs, or ends in the middle, at a text that its author chose."""
    with pytest.raises(SlowRegexError):
        check_regex(pattern)


def test_regexes_are_checked_at_any_nesting() -> None:
    """One that is looked over in a sequence of parts."""
    inner = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits"}, {"type": "Split", "pattern": {"Regex": "b"}}],
    }
    definition = {
        "normalizer": {"pattern": {"Regex": "a"}},
        "pre_tokenizer": inner,
        "decoder": {"pattern": {"String": "c"}},
        "model": {"vocab": {"Regex": 3}},
    }
    assert list(iter_regexes(definition)) == ["a", "b"]
