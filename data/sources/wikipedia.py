"""Chinese Wikipedia as `wikimedia/wikipedia` (20231101.zh): id, url, title, text; JSONL or parquet."""

import functools
import re
from typing import Any

from data.records import Document
from data.sources.base import HubDataset, SchemaError, Source, parse_json_object, require_text

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
    """OpenCC's traditional → simplified converter (t2s); loading it takes a moment, so a process has one."""
    import opencc

    return opencc.OpenCC("t2s")


def build_article(title: str, text: str) -> Document:
    """An article in simplified characters, its title as first line, once, without what extraction left behind."""
    title, text = (simplified_converter().convert(part).strip() for part in (title, text))
    first, _, rest = text.partition("\n")
    if first.strip() == title:
        text = rest
    return Document("\n\n".join(part for part in (title, strip_markup(text).strip()) if part))


def strip_markup(text: str) -> str:
    """Wiki markup that extraction left behind: templates, links, picture lines, references, hollow parentheses.

    Text of the kind this project trains on, in simplified characters; LaTeX between braces stays.
    """
    if "-{" in text:
        text = _VARIANT.sub(lambda match: _resolve_variant(match[1]), text)
    for _ in range(3 if "{{" in text else 0):
        text = _TEMPLATE.sub("", text)
    if "<ref" in text:
        text = _REFERENCE.sub("", text)
    if "[" in text:
        text = _EXTERNAL_LINK.sub(r"\1", _LINK.sub(lambda match: _link_text(match[1]), text))
    if "|" in text:
        text = _IMAGE_LINE.sub("", text)
    if "==" in text:
        text = _HEADING.sub(r"\2", text)
    if "__" in text:
        text = _MAGIC_WORD.sub("", text)
    text = _DOUBLE_PUNCTUATION.sub(
        r"\1", _DANGLING_PARENTHESIS.sub("（", _EMPTY_PARENTHESES.sub("", text))
    )
    lines = text.split("\n")
    while lines and (not lines[-1].strip() or lines[-1].strip() in _TAIL_HEADINGS):
        lines.pop()
    return "\n".join(lines)


def _resolve_variant(body: str) -> str:
    # -{zh-hans:计算机; zh-hant:電腦}- offers a wording per region; -{原文}- only protects its content.
    choices = dict(part.split(":", 1) for part in body.split(";") if ":" in part)
    named = {key.strip(): value.strip() for key, value in choices.items()}
    for key in ("zh-cn", "zh-hans", "zh-sg", "zh"):
        if key in named:
            return named[key]
    return (
        next(iter(named.values())) if named and all(key.startswith("zh") for key in named) else body
    )


def _link_text(body: str) -> str:
    return "" if _NON_TEXT_NAMESPACE.match(body) else body.rpartition("|")[2]


def parse_wikipedia(data: bytes) -> Document:
    """The article of one row. BadRow without a text."""
    row = parse_json_object(data)
    text = require_text(row, "text")
    title = row.get("title", "")
    if not isinstance(title, str):
        raise SchemaError(f"field 'title' is {type(title).__name__}, not text")
    return build_article(title, text)


SOURCE = Source(
    name="wikipedia",
    description="Chinese Wikipedia from wikimedia/wikipedia (20231101.zh): JSONL or parquet rows of title and text",
    parse=parse_wikipedia,
    hub=HubDataset("wikimedia/wikipedia", "20231101.zh"),
)
