"""Clean documents before they are tokenized, and reject those that are not worth training on.

The two entry points are pure: `clean` normalizes a text, `rejection_reason` names the reason to
drop it. In fenced code (``` and ~~~) only characters and line ends are normalized; indentation
stays everywhere.

Unicode is normalized to NFC, one sequence of code points for one character. NFKC, which also folds
compatibility forms, is not the default: full-width punctuation (，：；！？（）) is how Chinese is
written, not a variant of ASCII, and ①, ㎡, ½ differ from 1, m2, 1⁄2.
"""

import functools
import html.entities
import re
import unicodedata

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
# Types are named in other letters: `List<Section>`.
_TAG_NAME = "|".join(f"{_TAG_NAMES} {_TAG_NAMES.upper()}".split())
# Between two attributes is white space, or at least the quotation mark of the first.
_ATTRIBUTE = (
    r"""(?:\s+|(?<=["']))[a-zA-Z@:_][a-zA-Z0-9@:._-]*\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>`]+)"""
)
# Inline code; between two backticks it may contain a single one.
_CODE_SPAN = r"``(?:[^`\n]|`(?!`))+``|`[^`\n]*`"
# Between the name and `>` of a tag is nothing, or attributes with values: `a <b`, `Map<A ,B>` and
# `sort <a >b` are text. White space alone is nothing after a longer name, `<br >`, which is hardly
# that of a variable. A megabyte of `<` takes linear time: only quotation marks let a part reach
# beyond the next `<` or `<!--`, and of all attempts that are still in a value there, none has the
# same mark open as another.
_TAG = re.compile(
    rf"{_CODE_SPAN}|^(?:[ ]{{4}}|\t).*|(?P<comment><!--[^<-]*(?:<(?!!--)[^<-]*|-(?!->)[^<-]*)*-->)"
    rf"|(?<!\\)<(?=[a-zA-Z/])(?:(?P<opened>{_TAG_NAME})(?:(?:{_ATTRIBUTE})+\s*/?|\s*/|(?<=\w\w)\s+)?"
    rf"|/(?P<closed>{_TAG_NAME})\s*)>",
    re.MULTILINE,
)
_BLOCK_TAG = re.compile(
    r"(?:br|p|div|li|tr|h[1-6]|hr|table|ul|ol|dl|dt|dd|blockquote|section|article|pre|figure)\Z",
    re.IGNORECASE,
)
_ENTITY = re.compile(
    rf"{_CODE_SPAN}|&(?:[a-zA-Z][a-zA-Z0-9]{{1,31}}|#[0-9]{{1,7}}|#[xX][0-9a-fA-F]{{1,6}});"
)
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
    text = _normalize_characters(text, options)
    # Splitting at the capturing group gives prose and fenced code by turns, prose first.
    parts = _FENCED_CODE.split(text) if "```" in text or "~~~" in text else [text]
    parts[::2] = [_clean_prose(prose, options) for prose in parts[::2]]
    # Not strip() alone: the indentation of the first line stays, as everywhere.
    return "".join(parts).strip("\n").rstrip()


def _normalize_characters(text: str, options: CleanOptions) -> str:
    """Return the text without invisible characters, line ends as LF, other spaces as U+0020.

    Then Unicode is normalized as `options` say.
    """
    # Lone surrogates, which `_INVISIBLE` removes, can only be encoded with "surrogatepass".
    utf32 = text.encode("utf-32-le", "surrogatepass")
    if _needs_cleaning()[np.frombuffer(utf32, dtype="<u4")].any():
        text = _LINE_ENDS.sub("\n", text)
        text = _UNICODE_SPACES.sub(" ", _INVISIBLE.sub("", text))
        if "\u200c" in text or "\u200d" in text:
            text = _JOINERS.sub("", text)
        # U+2581 is the tokenizer's symbol for a space and would be decoded as one.
        text = text.replace("\u2581", "_")
    if options.unicode != "none" and not unicodedata.is_normalized(options.unicode, text):
        text = unicodedata.normalize(options.unicode, text)
    return text


def _clean_prose(text: str, options: CleanOptions) -> str:
    """Return text outside of fenced code without superfluous space and, if asked, without markup.

    The tests for a substring spare most texts most of the patterns, which are slow.
    """
    if options.markup:
        if "<" in text:
            text = _TAG.sub(_replace_tag, text)
        if "&" in text:
            # An entity is as good as its character: `&#12288;` indents, `&ensp;` parts words.
            text = _normalize_characters(_ENTITY.sub(_replace_entity, text), options)
            # Not only after the entities, which attributes contain: `title="&quot;"`.
            if "<" in text:
                text = _TAG.sub(_replace_tag, text)
        if "://" in text:
            text = _URL_LINE.sub("", text)
    text = _EMPTY_PARENTHESES.sub("", text)
    if "  " in text or "\u3000" in text:
        text = _CJK_SPACE_RUN.sub(r"\1\2", text)
    if " \n" in text or "\t\n" in text or "\u3000\n" in text:
        text = "\n".join([line.rstrip() for line in text.split("\n")])
    return _BLANK_LINES.sub("\n\n", text) if "\n\n\n" in text else text


def _replace_tag(match: re.Match[str]) -> str:
    """Return the replacement for a match of `_TAG`: a line end for a block tag, "" for others."""
    if match["comment"]:
        return ""
    name = match["opened"] or match["closed"]
    if name is None:
        # Not a tag but inline code or an indented line, which may be code: it stays.
        return match[0]
    return "\n" if _BLOCK_TAG.match(name) else ""


def _replace_entity(match: re.Match[str]) -> str:
    """Return the replacement for a match of `_ENTITY`: the character of an HTML entity."""
    if match[0].startswith("`"):
        # Not an entity but inline code: it stays.
        return match[0]
    # Not html.unescape alone: it also replaces the beginning of a name, `&para` in `&param;`.
    if match[0][1] != "#" and match[0][1:] not in html.entities.html5:
        return match[0]
    return html.unescape(match[0])


def rejection_reason(text: str, options: CleanOptions) -> str | None:
    """Return why a cleaned text is dropped, such as `too_short`, or None if it is kept."""
    if len(text) < options.minimum_characters:
        return "too_short"
    if len(text) > options.maximum_characters:
        return "too_long"
    # The limits above are numbers of characters, all others are shares from 0 to 1.
    chinese_share, other_letter_share, digit_share, symbol_share = _class_shares(text)
    # Chinese characters count as letters, too.
    if chinese_share + other_letter_share < options.minimum_letters:
        return "few_letters"
    if chinese_share < options.minimum_chinese:
        return "little_chinese"
    if digit_share > options.maximum_digits:
        return "many_digits"
    if symbol_share > options.maximum_symbols:
        return "many_symbols"
    if _repeated_line_share(text) > options.maximum_repeated_lines:
        return "repeated_lines"
    return None


@functools.cache
def _needs_cleaning() -> np.ndarray:
    """Return for every code point whether `clean` may change it, bool[0x110000].

    True for line ends other than LF, Unicode spaces, invisible characters, joiners and U+2581. One
    look-up per character saves most texts three passes of regular expressions.
    """
    table = np.zeros(0x110000, dtype=bool)
    for first, last in (
        (0x00, 0x1F),  # controls
        (0x7F, 0xA0),  # controls, no-break space
        (0xAD, 0xAD),  # soft hyphen
        (0x1680, 0x1680),  # Ogham space
        (0x2000, 0x200F),  # spaces, zero-width characters, direction marks
        (0x2028, 0x202F),  # line and paragraph separators, direction marks, narrow space
        (0x205F, 0x206F),  # mathematical space, invisible operators
        (0x2581, 0x2581),  # the tokenizer's symbol for a space
        (0xD800, 0xDFFF),  # lone surrogates
        (0xFDD0, 0xFDEF),  # noncharacters
        (0xFEFF, 0xFEFF),  # byte order mark
        (0xFFF9, 0xFFFB),  # annotation marks
        (0xFFFE, 0xFFFF),  # noncharacters
    ):
        table[first : last + 1] = True
    table[[0x09, 0x0A]] = False  # tab and LF stay
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
    # By the first letter of the Unicode category: letters and marks, numbers, punctuation, symbols.
    class_by_category = {"L": 2, "M": 2, "N": 3, "P": 4, "S": 4}
    for code in range(0x20000):
        table[code] = class_by_category.get(unicodedata.category(chr(code))[0], 0)
    # The planes above are unassigned, except for the Chinese characters that are set below.
    table[0x20000:0xE0000] = 4
    for first, last in (
        (0x3400, 0x4DBF),  # CJK extension A
        (0x4E00, 0x9FFF),  # CJK unified ideographs
        (0xF900, 0xFAFF),  # CJK compatibility ideographs
        (0x20000, 0x3FFFF),  # CJK extension B and further ones
        (0x3005, 0x3007),  # 々〆〇
    ):
        table[first : last + 1] = 1
    return table


def chinese_share(text: str) -> float:
    """Return the share of Chinese characters among the visible characters of a text."""
    return _class_shares(text)[0]


def _class_shares(text: str) -> tuple[float, float, float, float]:
    """Return the shares of Chinese, other letters, digits and symbols among visible characters."""
    # Class 0, space and controls, is not visible.
    counts = np.bincount(character_classes()[code_points(text)], minlength=5)[1:]
    # At least 1, because a text may have no visible character.
    num_visible = max(int(counts.sum()), 1)
    chinese, letters, digits, symbols = (counts / num_visible).tolist()
    return chinese, letters, digits, symbols


def _repeated_line_share(text: str) -> float:
    """Return the share of characters that lie in lines which repeat an earlier line.

    Lines of fewer than `_MIN_REPEATED_LINE_LENGTH` characters do not count.
    """
    lines = [line for line in text.split("\n") if len(line) >= _MIN_REPEATED_LINE_LENGTH]
    unique_lines = set(lines)
    if len(unique_lines) == len(lines):
        return 0.0
    num_characters = sum(map(len, lines))
    num_unique_characters = sum(map(len, unique_lines))
    return (num_characters - num_unique_characters) / num_characters
