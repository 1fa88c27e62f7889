"""Chinese Wikipedia: rows of id, url, title, text, in simplified characters and without markup.

`wikimedia/wikipedia` (20231101.zh) is JSONL or parquet. `wiki_zh_2019` is folders AA, AB … of JSONL
files wiki_00, wiki_01 …, whose texts begin with the title and have blank lines between paragraphs.
"""

import functools
import re
from typing import Any

from data.readers.hub import HubDataset
from data.records import Document
from data.sources.base import SchemaError, Source, parse_json_object, require_text

# The body has no braces, except those of templates, and no LaTeX: `{a}-{b^2}-{c}` is a formula.
_VARIANT_MARKUP = re.compile(r"-\{([^{}\\^]*(?:\{\{[^{}]*\}\}[^{}\\^]*)*)\}-")
_VARIANT_FLAGS = frozenset("ATRDHN-")
# Up to a `;` that does not end an entity.
_RULE = re.compile("(?:&[#a-zA-Z0-9]{1,31};|[^;])+")
_NOT_FLAGS = re.compile("[^A-Za-z;+ -]")
_VARIANT_NAMES = {
    "zh": "原文",
    "zh-hans": "简体",
    "zh-hant": "繁体",
    "zh-cn": "大陆",
    "zh-tw": "台湾",
    "zh-hk": "香港",
    "zh-mo": "澳门",
    "zh-sg": "新加坡",
    "zh-my": "大马",
}
# Those whose wording mainland China reads, the best first.
_MAINLAND_VARIANTS = ("zh-cn", "zh-hans", "zh-sg", "zh-my")
_MAX_VARIANT_DEPTH = 10  # of nested markup, as in MediaWiki
# Text that is not converted to simplified characters, between noncharacters as marks.
_PROTECTED = re.compile("\ufdd0([^\ufdd0\ufdd1]*)\ufdd1")
# A template begins with its name: `{{1, 2}}`, `{{ variable }}` and `{{key: 'value'}}` are text.
_TEMPLATE = re.compile(
    r"\{\{(?!.{0,2}\}\})"
    r"(?:[^\W_][^{}|\\^_,;:=<>\"().，、；：]{0,200}(?:\|[^{}\\^_]{0,2000})?"
    r"|(?:#[a-z]{2,20}|[A-Z]{2,30}):(?=\S)[^{}\\^_]{0,2000})\}\}"
)
_REFERENCE = re.compile(
    r"<ref(?:\s{1,9}[a-z]{1,20}\s{0,9}=[^<>]{0,300})?\s{0,9}"
    r"(?:/>|>(?:[^<]|<(?!/?ref\b)){0,2000}</ref\s{0,9}>)",
    re.IGNORECASE,
)
_ESCAPED_REFERENCE_TAG = re.compile(
    r"&lt;(/?ref\b(?:[^<>&]|&(?![lg]t;)){0,300})&gt;", re.IGNORECASE
)
_LINK = re.compile(r"\[\[([^\[\]]{1,1000})\]\]")
_EXTERNAL_LINK = re.compile(r"\[https?://[^\s\[\]]{1,1000}[ ]?([^\[\]\n]{0,500})\]")
# Codes of other Wikipedias are in small letters: `Re:` and `CSI:` begin titles, `std::` is code.
_NON_TEXT_NAMESPACE = re.compile(
    r"(?:(?i:file|image|category)|文件|档案|图像|图片|分类|[a-z]{2,3}(?:-[a-z]{2,9}){0,2}):(?!:)"
)
# Alignment alone does not make a line an image: `left|right` is text.
_IMAGE_LINE = re.compile(
    r"^(?:(?:right|left|center|none|右|左|居中)\|){0,9}"
    r"(?:thumb|thumbnail|缩略图|\d{1,4}px|upright[\d.=]{0,9})\|.*$",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"^(={2,6}) {0,9}([^=\n]{1,200}?) {0,9}\1$", re.MULTILINE)
# By name, because `__FILE__` is text.
_MAGIC_WORD = re.compile(
    r"__(?:(?:FORCE|NO)?TOC|(?:NO)?NEWSECTIONLINK|NOEDITSECTION|NOGALLERY|HIDDENCAT|(?:NO)?INDEX"
    r"|NO(?:CONTENT|TITLE)CONVERT|NO[CT]C|STATICREDIRECT|DISAMBIG)__"
)
_EMPTY_PARENTHESES = re.compile(r"[ ]?(?:（[\s，、；：,;:。]{0,50}）|\([\s，、；：,;:]{1,50}\))")
_DANGLING_PARENTHESIS = re.compile(r"（[\s，、；：,;:]{1,50}")
_DOUBLE_PUNCTUATION = re.compile(r"([，、；])[，、；]{1,9}")
_TAIL_HEADINGS = {
    "参考文献",
    "参考资料",
    "参考来源",
    "外部链接",
    "外部连接",
    "参见",
    "参看",
    "另见",
    "注释",
    "注解",
    "备注",
    "脚注",
    "来源",
    "相关条目",
    "延伸阅读",
    "扩展阅读",
    "资料来源",
    "引用",
    "图片",
    "图集",
}


@functools.cache
def simplified_converter() -> Any:
    """Return OpenCC's converter of traditional characters (t2s), loaded once in a process."""
    import opencc

    return opencc.OpenCC("t2s")


def to_simplified(text: str) -> str:
    """Return a text in simplified characters, its language-variant markup resolved.

    As for a reader in mainland China: -{zh-cn:软件; zh-tw:軟體}- becomes 软件, and what -{於}- or
    -{R|於}- protects is not converted.
    """
    convert = simplified_converter().convert
    if "-{" not in text:
        return convert(text)
    text = _remove_marks(text)
    # One pass resolves the innermost markup.
    for _ in range(_MAX_VARIANT_DEPTH):
        text, num_resolved = _VARIANT_MARKUP.subn(_resolve_variant, text)
        if num_resolved == 0:
            break
    # Splitting at the capturing group gives text to convert and protected text by turns. One call
    # converts all, because a call has a cost of its own.
    parts = _PROTECTED.split(text)
    parts[::2] = convert("\ufdd0".join(parts[::2])).split("\ufdd0")
    return "".join(parts)


def build_article(title: str, text: str) -> Document:
    """Return an article in simplified characters without markup, with its title as first line."""
    title = to_simplified(title).strip()
    text = to_simplified(text).strip()
    # Some texts begin with the title already, which must not stand there twice.
    first_line, _, rest = text.partition("\n")
    if first_line.strip() == title:
        text = rest
    parts = (title, strip_markup(text).strip())
    return Document("\n\n".join(filter(None, parts)))


def strip_markup(text: str) -> str:
    """Remove the wiki markup that extraction left behind from a text in simplified characters.

    That is templates, links, image lines, references, empty parentheses and trailing headings
    without text. LaTeX in braces stays.
    """
    # The tests for a substring spare most texts most of the patterns, which are slow.
    if "{{" in text:
        # One pass removes the innermost templates.
        for _ in range(3):
            text = _TEMPLATE.sub("", text)
    if "&lt;" in text:
        text = _ESCAPED_REFERENCE_TAG.sub(r"<\1>", text)
    if "<" in text:
        text = _REFERENCE.sub("", text)
    if "[" in text:
        # Twice for links in the caption of a picture.
        for _ in range(2):
            text = _LINK.sub(lambda match: _link_text(match[1]), text)
        text = _EXTERNAL_LINK.sub(r"\1", text)
    if "|" in text:
        text = _IMAGE_LINE.sub("", text)
    if "==" in text:
        text = _HEADING.sub(r"\2", text)
    if "__" in text:
        text = _MAGIC_WORD.sub("", text)
    text = _EMPTY_PARENTHESES.sub("", text)
    text = _DANGLING_PARENTHESIS.sub("（", text)
    text = _DOUBLE_PUNCTUATION.sub(r"\1", text)
    lines = text.split("\n")
    while lines and (not lines[-1].strip() or lines[-1].strip() in _TAIL_HEADINGS):
        lines.pop()
    return "\n".join(lines)


def _resolve_variant(match: re.Match[str]) -> str:
    """Return what MediaWiki shows in mainland China for a match of `_VARIANT_MARKUP`.

    Flags stand before a `|`: -{H|…}-, -{-|…}- and -{T|…}- only set rules and show nothing,
    -{N|zh-cn}- names a variant, -{D|…}- describes its rules, -{R|…}- protects its content, and
    -{A|…}- shows what -{…}- does.
    """
    head, separator, rest = match[1].partition("|")
    flags = {flag.strip() for flag in head.split(";")} if separator else set()
    flags &= _VARIANT_FLAGS | _VARIANT_NAMES.keys()
    # Flags that do not exist have no effect, but names of wordings and links are no flags.
    is_unknown_flag = separator and not _NOT_FLAGS.search(head)
    body = rest if flags or is_unknown_flag else match[1]
    if "R" in flags:
        return _protect(body)
    if "N" in flags:
        return _VARIANT_NAMES.get(body.strip(), "")
    if "H" in flags or "-" in flags or flags == {"T"}:
        return ""
    if not flags.isdisjoint(_VARIANT_NAMES):
        # -{zh-hans;zh-hant|…}-: converted for these variants only.
        return body if not flags.isdisjoint(_MAINLAND_VARIANTS) else _protect(body)
    rules = _parse_variant_rules(body)
    if not rules:
        return _protect(body)
    if "D" in flags:
        return "".join(
            f"{original}{'⇒' if original else ''}{_VARIANT_NAMES[variant]}：{wording}；"
            for original, variant, wording in rules
        )
    wordings = {variant: wording for original, variant, wording in rules if not original}
    one_way_wordings = {variant: wording for original, variant, wording in rules if original}
    for table in (wordings, one_way_wordings):
        for variant in _MAINLAND_VARIANTS:
            if variant in table:
                return _protect(table[variant])
    # Wordings for other regions only: one of them, or the original, is better than the markup.
    return wordings.get("zh") or next(iter(wordings.values()), rules[0][0])


def _parse_variant_rules(body: str) -> list[tuple[str, str, str]]:
    """Return the rules (original, variant, wording) of a list, or [] if the body is not a list.

    A rule is `variant:wording`, with "" as original, or `original=>variant:wording`. A `;` that is
    not followed by a rule is part of the wording.
    """
    starts: list[tuple[str, str]] = []
    wordings: list[list[str]] = []
    for part in _RULE.findall(body.replace("=&gt;", "=>")):
        head, colon, wording = part.partition(":")
        original, _, variant = head.rpartition("=>")
        variant = variant.strip().lower()
        if colon and variant in _VARIANT_NAMES:
            starts.append((original.strip(), variant))
            wordings.append([wording])
        elif part.strip():
            if not starts:
                return []
            wordings[-1].append(part)
    return [
        (original, variant, ";".join(parts).strip())
        for (original, variant), parts in zip(starts, wordings, strict=True)
    ]


def _protect(text: str) -> str:
    """Return a text between the marks of `_PROTECTED`, without marks inside."""
    return f"\ufdd0{_remove_marks(text)}\ufdd1"


def _remove_marks(text: str) -> str:
    """Return a text without the marks of `_PROTECTED`."""
    return text.replace("\ufdd0", "").replace("\ufdd1", "")


def _link_text(body: str) -> str:
    """Return the visible text of the link [[body]]: all of it, or what follows the last `|`.

    If nothing follows, it is what stands before. Returns "" for files, categories and links to
    other languages, and [[body]] if it is code: a test of a shell or a list of lists.
    """
    is_numbers = "," in body and not body.strip("0123456789+-., ")
    if is_numbers or body.startswith((" ", '"', "'")):
        return f"[[{body}]]"
    target, _, text = body.rpartition("|")
    return "" if _NON_TEXT_NAMESPACE.match(body) else text or target


def parse_wikipedia(data: bytes) -> Document:
    """Return the article of one row. Raises SchemaError if it has no text or a bad title."""
    row = parse_json_object(data)
    text = require_text(row, "text")
    title = row.get("title", "")
    if not isinstance(title, str):
        raise SchemaError(f"field 'title' is {type(title).__name__}, not text")
    return build_article(title, text)


def _is_wiki_zh_2019(row: dict[str, Any], _is_list: bool) -> bool:
    """Return whether the first record of a file is of wiki_zh_2019: its text repeats the title."""
    return str(row.get("text")).startswith(f"{row.get('title')}\n")


_KEYS = (frozenset({"id", "url", "title", "text"}),)
SOURCES = (
    Source(
        name="wikipedia",
        description="Chinese Wikipedia from wikimedia/wikipedia (20231101.zh): JSONL or parquet "
        "rows of title and text",
        parse=parse_wikipedia,
        has_title_line=True,
        hub=HubDataset("wikimedia/wikipedia", "20231101.zh"),
        keys=_KEYS,
    ),
    Source(
        name="wiki_zh_2019",
        description="wiki_zh_2019: the folder of AA/wiki_00 … files, JSONL of title and text",
        parse=parse_wikipedia,
        has_title_line=True,
        keys=_KEYS,
        recognizes=_is_wiki_zh_2019,
    ),
)
