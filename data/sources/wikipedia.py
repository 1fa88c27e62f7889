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

_VARIANT = re.compile(r"-\{([^{}]{0,500})\}-")
_TEMPLATE = re.compile(r"\{\{(?!.{0,2}\}\})[^{}\\^_]{1,2000}\}\}")
_REFERENCE = re.compile(
    r"<ref\b[^<>]{0,300}/>|<ref\b[^<>]{0,300}>[^<]{0,2000}</ref>", re.IGNORECASE
)
_LINK = re.compile(r"\[\[([^\[\]]{1,1000})\]\]")
_EXTERNAL_LINK = re.compile(r"\[https?://[^\s\[\]]{1,1000}[ ]?([^\[\]\n]{0,500})\]")
_NON_TEXT_NAMESPACE = re.compile(
    r"(?:file|image|category|文件|档案|图像|图片|分类|[a-z]{2,3}):", re.IGNORECASE
)
_IMAGE_LINE = re.compile(
    r"^(?:(?:thumb|thumbnail|right|left|center|none|缩略图|右|左|居中|\d{1,4}px|upright[\d.=]*)\|)+.*$",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"^(={2,6}) {0,9}([^=\n]{1,200}?) {0,9}\1$", re.MULTILINE)
_MAGIC_WORD = re.compile(r"__[A-Z]{3,20}__")
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


def build_article(title: str, text: str) -> Document:
    """Return an article in simplified characters without markup, with its title as first line."""
    convert = simplified_converter().convert
    title = convert(title).strip()
    text = convert(text).strip()
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
    if "-{" in text:
        text = _VARIANT.sub(lambda match: _resolve_variant(match[1]), text)
    if "{{" in text:
        # One pass removes the innermost templates.
        for _ in range(3):
            text = _TEMPLATE.sub("", text)
    if "<ref" in text:
        text = _REFERENCE.sub("", text)
    if "[" in text:
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


def _resolve_variant(body: str) -> str:
    """Return the text for mainland China of a language-variant markup, given without its braces.

    -{zh-hans:计算机; zh-hant:電腦}- has a wording for each region; -{原文}- protects its content.
    """
    choices = dict(part.split(":", 1) for part in body.split(";") if ":" in part)
    wordings = {variant.strip(): wording.strip() for variant, wording in choices.items()}
    for variant in ("zh-cn", "zh-hans", "zh-sg", "zh"):
        if variant in wordings:
            return wordings[variant]
    # Wordings for other regions only: the first is better than the markup.
    if wordings and all(variant.startswith("zh") for variant in wordings):
        return next(iter(wordings.values()))
    # Protected content, in which a colon may be part of the text.
    return body


def _link_text(body: str) -> str:
    """Return the visible text of the link [[body]]: all of it, or what follows the last `|`.

    Returns "" for files, categories and links to other languages.
    """
    return "" if _NON_TEXT_NAMESPACE.match(body) else body.rpartition("|")[2]


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
        hub=HubDataset("wikimedia/wikipedia", "20231101.zh"),
        keys=_KEYS,
    ),
    Source(
        name="wiki_zh_2019",
        description="wiki_zh_2019: the folder of AA/wiki_00 … files, JSONL of title and text",
        parse=parse_wikipedia,
        keys=_KEYS,
        recognizes=_is_wiki_zh_2019,
    ),
)
