"""Cleaning: extraction leftovers are removed, text stays."""

import gzip
import itertools
import time
import unicodedata
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.prepare.clean import character_classes, clean, rejection_reason
from data.prepare.options import CleanOptions

OPTIONS = CleanOptions()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("甲\r\n乙\r丙\u2028丁\x85戊", "甲\n乙\n丙\n丁\n戊"),
        ("甲\u200b乙\ufeff丙\x00丁\x07\u202e戊\xad", "甲乙丙丁戊"),
        ("中\u200d文\u200c。", "中文。"),
        ("a\u2581b", "a_b"),
        ("a\xa0b\u2003c", "a b c"),
        ("e\u0301", "é"),
        ("甲 \n乙\t\n丙\u3000\n\n\n\n丁  ", "甲\n乙\n丙\n\n丁"),
        ("第一章    总则", "第一章 总则"),
        ("\n\n甲\n", "甲"),
        ("甲（，）乙（ ；、）", "甲乙"),
        ("甲<br>乙<br/>丙", "甲\n乙\n丙"),
        ("<b>粗</b><span style='x'>细</span>", "粗细"),
        ("甲<!-- 注\n释 -->乙", "甲乙"),
        ("甲<!-- <b> a-b -- c --->乙", "甲乙"),
        ("<A HREF=x.htm>甲</A><td class='a' id=\"b>c\" >乙</td >", "甲乙"),
        ('<a title="&quot;甲&quot;" href=x?y=1>乙</a>', "乙"),
        ("<a title='甲<i>'href=\"x<y\">乙</a><td >丙</td><BR >丁", "乙丙\n丁"),
        ("甲&lt;p class=&quot;a&quot;&gt;乙&lt;/p&gt;&#60;br/&#62;丙", "甲\n乙\n\n丙"),
        ("甲<!-- 没完", "甲<!-- 没完"),
        ("5 &lt; 6 &amp;&nbsp;7", "5 < 6 & 7"),
        ("甲\nhttp://a.b/c?d=1\n乙", "甲\n乙"),
        ("甲&#x2581;乙&#0;丙&#xd800;", "甲_乙\ufffd丙\ufffd"),
        ("&#12288;&#12288;甲&emsp;乙&#10;丙&shy;&zwj;丁e&#769;", "　　甲 乙\n丙丁é"),
        ("&frac12;&sup2; &CounterClockwiseContourIntegral;", "½² ∳"),
        ("\ud800甲\udfff", "甲"),
    ],
)
def test_unwanted_characters_are_removed(text: str, expected: str) -> None:
    """Prevents invisible characters and markup from becoming tokens."""
    assert clean(text, OPTIONS) == expected


@pytest.mark.parametrize(
    "text",
    [
        "，：；！？（）“”《》——……①㎡½",
        "关关雎鸠，在河之洲。\n窈窕淑女，君子好逑。\n\n参差荇菜，左右流之。",
        "　　段首缩进两格。\n　　又一段。",
        "def f(a, b):\n    if a < b and b > c:\n        return a&b\n\n    return {'a':  1}",
        "```html\n<p>段落</p>   \n\n\n<br>&lt;\n```".replace("   ", ""),
        "用 `<br>` 和 `&nbsp;` 换行",
        "    <div>缩进的代码</div>\n\t<p>也是</p>",
        "List<String> x; a<T> b; <T>",
        "若 x<a 且 y>b，则 A={x|x<a 或 x>b}",
        "若 a <b 则成立。\n另起一行，又有 c> d 的情形。",
        "sort <a >b; Map<A ,B>; List<u >; Map<A, List<B, C>>; List<Section>; vector<Table>",
        "i <s && j>0; x<p||y>q; if (a <b) {c} else {d> e}; <a b>; <a b=1 c>; 若 s <u=3 且 y>b",
        r"标签 \<p> 和 \<blockquote> 之间",
        "注释以 `<!--` 开头，以 `-->` 结尾；``<b>`</b>``",
        "f(&param;, &quote;)",
        "# 标题\n\n- 一\n  - 二\n\n| 甲 | 乙 |\n|----|----|\n| 1  | 2  |\n\n"
        "> 引用\n\n[链接](http://a.b)\n\n[1]: http://a.b",
        "👨\u200d👩\u200d👧 می\u200cخواهم",
        "f() 与 （甲）",
        "𠮷野家 㐂 㗎",
        "e = mc^2 & a && b; AT&T",
    ],
)
def test_wanted_characters_are_kept(text: str) -> None:
    """Prevents Chinese punctuation, verse, code, Markdown and emoji from changing."""
    assert clean(text, OPTIONS) == text


def test_nfkc_and_no_normalization_options() -> None:
    """Prevents an option from having no effect."""
    assert clean("，①", CleanOptions(unicode="NFKC")) == ",1"
    assert clean("e\u0301", CleanOptions(unicode="none")) == "e\u0301"
    assert clean("<b>甲</b>", CleanOptions(markup=False)) == "<b>甲</b>"


PROSE = "今天天气很好，我们一起去公园散步，看见许多人在湖边钓鱼。"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("太短了", "too_short"),
        (PROSE * 10, "too_long"),
        ("—" * 30 + "甲乙", "few_letters"),
        ("All of this is English and nothing else.", "little_chinese"),
        ("甲乙丙丁戊己庚辛壬癸子丑" + "12345678", "many_digits"),
        ("甲乙丙丁戊己" * 3 + "，。！？" * 6, "many_symbols"),
        ((PROSE + "\n") * 4, "repeated_lines"),
        ("\n".join(PROSE[i:] for i in range(9)), None),
        ("一\n二\n三\n一\n二\n三\n" * 5, None),
        ("床前明月光，疑是地上霜。举头望明月，低头思故乡。", None),
    ],
)
def test_each_dropped_text_has_a_reason(text: str, reason: str | None) -> None:
    """Prevents a rule from dropping good text, or from dropping text under a wrong reason."""
    options = CleanOptions(maximum_characters=260, maximum_symbols=0.45)
    assert rejection_reason(text, options) == reason


def test_character_classes_agree_with_unicode() -> None:
    """Prevents characters from being counted as another class."""
    table = character_classes()
    assert [int(table[ord(c)]) for c in "中〇々𠮷é１1①，。a \n\u3000🎉"] == [
        1,
        1,
        1,
        1,
        2,
        3,
        3,
        3,
        4,
        4,
        2,
        0,
        0,
        0,
        4,
    ]


@pytest.mark.slow
@given(
    st.text(
        st.characters(codec=None) | st.sampled_from("`<>&;（），。\u3000 \n\r\u200d甲b/!-"),
        max_size=120,
    )
)
@settings(deadline=None, max_examples=400)
def test_cleaned_text_is_normalized_visible_and_encodable(text: str) -> None:
    """Prevents any input from leaving characters that the tokenizer cannot encode."""
    result = clean(text, OPTIONS)
    result.encode()
    assert unicodedata.is_normalized("NFC", result)
    assert not any(
        unicodedata.category(c) in {"Cc", "Cs"} for c in result.replace("\n", "").replace("\t", "")
    )
    assert "\u2581" not in result
    rejection_reason(result, OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    [
        "<",
        "<!--",
        "<!-- -",
        "<a ",
        "<a b=",
        "<a b='",
        '<a b="c" d=\'',
        "<a b='\" c=' d=\"",
        " b=c",
        "<br/",
        "</a ",
        "&lt;",
        "``",
        "`a``",
        "`",
        "（，",
        " ",
        "&#",
        "```\n",
        "\u3000",
        "{{",
        "<ref>",
        "[[",
        "\n ",
        "http://",
    ],
)
def test_cleaning_is_linear_time(piece: str) -> None:
    """Prevents a regular expression that backtracks for minutes on a megabyte of one mark."""
    start = time.process_time()
    clean("<a " + piece * (300_000 // len(piece)) + "x", OPTIONS)
    assert time.process_time() - start < 2


@pytest.mark.slow
def test_real_prose_is_mostly_kept_and_fast(shared: Path) -> None:
    """Prevents rules that drop real documents, change cleaned ones, or take too long."""
    texts: list[str] = []
    for name in ("laws", "novels", "lctt_published", "classical_modern_target"):
        with gzip.open(shared / "data" / "pretrain" / f"{name}.jsonl.gz") as file:
            texts += [orjson.loads(line)["text"] for line in itertools.islice(file, 150)]
    start = time.perf_counter()
    cleaned = [clean(text, OPTIONS) for text in texts]
    rate = sum(len(text.encode()) for text in texts) / 1e6 / (time.perf_counter() - start)
    assert rate > 2
    assert sum(map(len, cleaned)) > 0.97 * sum(map(len, texts))
    assert sum(clean(text, OPTIONS) == text for text in cleaned) >= 0.99 * len(cleaned)
    assert sum(rejection_reason(text, OPTIONS) is None for text in cleaned) >= 0.99 * len(cleaned)
