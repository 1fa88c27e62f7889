"""Clean documents before they are tokenized, and reject those that are not worth training on.

Both functions are pure: `clean` normalizes a text, `rejection_reason` names the reason to drop it.
In fenced code (``` and ~~~) only characters and line ends are normalized; indentation stays
everywhere.

Unicode is normalized to NFC, one sequence of code points for one character. NFKC, which also folds
compatibility forms, is not the default: full-width punctuation (，：；！？（）) is how Chinese is
written, not a variant of ASCII, and ①, ㎡, ½ differ from 1, m2, 1⁄2.
"""

import functools
import html
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from data.prepare.options import CleanOptions

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_CJK = HAN + "\u3001-\u303f\uff00-\uffef"
_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
# Controls, zero-width and direction marks, byte order marks, soft hyphens, noncharacters and lone
# surrogates. The joiners U+200C and U+200D carry meaning in emoji and in other scripts, but none
# beside Chinese.
_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff]"
)
_JOINERS = re.compile(f"(?<=[{_CJK}])[\u200c\u200d]|[\u200c\u200d](?=[{_CJK}])")
_UNICODE_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
_FENCE_LINE = r"[ ]{0,3}(?:```|~~~)[^\n]*"
_FENCED_CODE = re.compile(
    rf"^({_FENCE_LINE}\n(?:(?!{_FENCE_LINE})[^\n]*\n)*{_FENCE_LINE})$", re.MULTILINE
)
_TAG_NAMES = (
    "a abbr article b big blockquote br center cite dd del div dl dt em figcaption figure font "
    "footer h[1-6] header hr i img ins kbd li mark nav nowiki ol p pre q s section small span "
    "strike strong sub sup table tbody td tfoot th thead tr tt u ul"
)
_TAG = re.compile(
    rf"`[^`\n]*`|^(?:[ ]{{4}}|\t).*|</?({'|'.join(_TAG_NAMES.split())})(?:\s[^<>]{{0,2000}})?/?>",
    re.I | re.M,
)
_BLOCK_TAG = re.compile(
    r"(?:br|p|div|li|tr|h[1-6]|hr|table|ul|ol|dl|dt|dd|blockquote|section|article|pre|figure)\Z",
    re.IGNORECASE,
)
_ENTITY = re.compile(r"`[^`\n]*`|&(?:[a-zA-Z]{2,8}|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
_URL_LINE = re.compile(r"^[ \t]*<?(?:https?|ftp)://[^\s<>]+>?[ \t]*\n?", re.MULTILINE)
# Empty parentheses stay: in exercises they are where the answer goes.
_EMPTY_PARENTHESES = re.compile(r"（\s{0,9}[，、；：,;:][\s，、；：,;:]{0,50}）")
_CJK_SPACE_RUN = re.compile(rf"([{_CJK}])([ \u3000])[ \u3000]+(?=[{_CJK}])")
_BLANK_LINES = re.compile(r"\n{3,}")
_MIN_REPEATED_LINE_LENGTH = 10


def clean(text: str, options: CleanOptions) -> str:
    """Return the text normalized, without invisible characters, markup and superfluous space.

    Takes time linear in the length of the text, whatever its content.
    """
    if _needs_cleaning()[
        np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    ].any():
        text = _LINE_ENDS.sub("\n", text)
        text = _UNICODE_SPACES.sub(" ", _INVISIBLE.sub("", text))
        if "\u200c" in text or "\u200d" in text:
            text = _JOINERS.sub("", text)
        # U+2581 is the tokenizer's symbol for a space and would be decoded as one.
        text = text.replace("\u2581", "_")
    if options.unicode != "none" and not unicodedata.is_normalized(options.unicode, text):
        text = unicodedata.normalize(options.unicode, text)
    pieces = _FENCED_CODE.split(text) if "```" in text or "~~~" in text else [text]
    pieces[::2] = [_clean_prose(piece, options.markup) for piece in pieces[::2]]
    return "".join(pieces).strip("\n").rstrip()


def _clean_prose(text: str, remove_markup: bool) -> str:
    if remove_markup:
        if "<!--" in text:
            text = "".join(_split_around_comments(text))
        if "<" in text:
            text = _TAG.sub(_replace_tag, text)
        if "&" in text:
            text = _ENTITY.sub(_replace_entity, text)
        if "://" in text:
            text = _URL_LINE.sub("", text)
    text = _EMPTY_PARENTHESES.sub("", text)
    if "  " in text or "\u3000" in text:
        text = _CJK_SPACE_RUN.sub(r"\1\2", text)
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:
        text = "\n".join([line.rstrip() for line in text.split("\n")])
    return _BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def _split_around_comments(text: str) -> Iterator[str]:
    # Not a regular expression: a million `<!--` without an end would make it scan the text a
    # million times.
    position = 0
    while (start := text.find("<!--", position)) >= 0 and (end := text.find("-->", start)) >= 0:
        yield text[position:start]
        position = end + 3
    yield text[position:]


def _replace_tag(match: re.Match[str]) -> str:
    if match[1] is None:
        return match[0]
    return "\n" if _BLOCK_TAG.match(match[1]) else ""


def _replace_entity(match: re.Match[str]) -> str:
    if match[0].startswith("`"):
        return match[0]
    character = html.unescape(match[0])
    if character == "\xa0":
        return " "
    return character if character.isprintable() and character != "\u2581" else ""


def rejection_reason(text: str, options: CleanOptions) -> str | None:
    """Return why a cleaned text is dropped (`too_short`, `few_letters`, …), None if it is not."""
    if len(text) < options.minimum_characters:
        return "too_short"
    if len(text) > options.maximum_characters:
        return "too_long"
    chinese, letters, digits, symbols = _class_shares(text)
    if chinese + letters < options.minimum_letters:
        return "few_letters"
    if chinese < options.minimum_chinese:
        return "little_chinese"
    if digits > options.maximum_digits:
        return "many_digits"
    if symbols > options.maximum_symbols:
        return "many_symbols"
    if _repeated_line_share(text) > options.maximum_repeated_lines:
        return "repeated_lines"
    return None


@functools.cache
def _needs_cleaning() -> np.ndarray:
    """Return for every code point whether `clean` changes it regardless of context, bool[0x110000].

    One look-up per character saves most texts three passes of regular expressions.
    """
    table = np.zeros(0x110000, dtype=bool)
    for code in [
        *range(0x20),
        *range(0x7F, 0xA1),
        *range(0x1680, 0x1681),
        *range(0x2000, 0x2070),
        0xAD,
        0x2581,
    ]:
        table[code] = (
            code not in (0x09, 0x0A)
            and not 0x2010 <= code <= 0x2027
            and not 0x2030 <= code <= 0x205E
        )
    for first, last in (
        (0xD800, 0xDFFF),
        (0xFDD0, 0xFDEF),
        (0xFEFF, 0xFEFF),
        (0xFFF9, 0xFFFB),
        (0xFFFE, 0xFFFF),
    ):
        table[first : last + 1] = True
    return table


def code_points(text: str) -> np.ndarray:
    """Return the code points of a text without lone surrogates, uint32[len(text)]."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


@functools.cache
def character_classes() -> np.ndarray:
    """Return the class of every code point, uint8[0x110000].

    0 is space or control, 1 Chinese, 2 another letter, 3 a digit, 4 anything else.
    """
    table = np.zeros(0x110000, dtype=np.uint8)
    by_category = {"L": 2, "M": 2, "N": 3, "P": 4, "S": 4}
    for code in range(0x20000):
        table[code] = by_category.get(unicodedata.category(chr(code))[0], 0)
    table[0x20000:0xE0000] = 4
    for first, last in (
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
        (0x3005, 0x3007),
    ):
        table[first : last + 1] = 1
    return table


def _class_shares(text: str) -> tuple[float, float, float, float]:
    """Return the shares of Chinese, other letters, digits and symbols among visible characters."""
    counts = np.bincount(character_classes()[code_points(text)], minlength=5)[1:]
    chinese, letters, digits, symbols = (counts / max(int(counts.sum()), 1)).tolist()
    return chinese, letters, digits, symbols


def _repeated_line_share(text: str) -> float:
    """Return the share of characters that lie in lines which repeat an earlier line."""
    lines = [line for line in text.split("\n") if len(line) >= _MIN_REPEATED_LINE_LENGTH]
    unique_lines = set(lines)
    if len(unique_lines) == len(lines):
        return 0.0
    total = sum(map(len, lines))
    return (total - sum(map(len, unique_lines))) / total
