"""Helpers of the summarization sources: articles with titles, lines that are not JSON."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from data.readers.encoding import describe_encoding
from data.readers.table import TableHeader, find_header
from data.records import Summary
from data.sources.base import SchemaError

# What the name of a column says: 论文标题 is a title, 新闻内容 an article. A summary is an article
# beside a title (CSL's abstracts), and a title beside an article (LCSTS).
_TITLE_NAME = re.compile(
    r"title|headline|标题|標題|题目|題目|题名|題名|篇名|论文名|論文名", re.IGNORECASE
)
_SUMMARY_NAME = re.compile(
    r"summary|highlights|摘要|文摘|总结|總結|概要|提要|简介|簡介", re.IGNORECASE
)
_ARTICLE_NAME = re.compile(
    r"\babs\b|abst|content|text|article|document|passage|news|body|description"
    r"|正文|内容|內容|原文|文章|短文|全文|文本|新闻|新聞|文档|文檔|微博",
    re.IGNORECASE,
)
# 文章编号 and text_length are no texts.
_NUMBER_NAME = re.compile(r"(?:id|编号|編號|序号|序號|号|长度|len|length|字数)\Z", re.IGNORECASE)
# Longer cells are titles and articles themselves.
_MAX_NAME_CHARACTERS = 20


def find_pair_columns(names: Iterable[str]) -> tuple[str, str] | None:
    """Return which of the names of columns are those of the article and of its title, or None."""
    names = list(names)
    if any(len(name) > _MAX_NAME_CHARACTERS for name in names):
        return None
    titles = _find_names(_TITLE_NAME, names)
    summaries = [name for name in _find_names(_SUMMARY_NAME, names) if name not in titles]
    articles = [
        name for name in _find_names(_ARTICLE_NAME, names) if name not in titles + summaries
    ]
    if titles and (articles or summaries):
        return (articles or summaries)[0], titles[0]
    if summaries and articles:
        return articles[0], summaries[0]
    return None


def _find_names(pattern: re.Pattern[str], names: list[str]) -> list[str]:
    """Return the names in which a pattern is found, first those that are nothing else."""
    found = [name for name in names if pattern.search(name) and not _NUMBER_NAME.search(name)]
    return sorted(found, key=lambda name: pattern.fullmatch(name) is None)


@dataclass(frozen=True)
class PairTable:
    """The header of a table with a column of articles and one of their titles."""

    header: TableHeader
    article: str
    title: str

    @property
    def is_lcsts(self) -> bool:
        """Return whether the columns have the names of LCSTS; any other table is read as CSL."""
        return (self.article, self.title) in (("text", "summary"), ("short_text", "summary"))


def find_pair_table(file_head: bytes) -> PairTable | None:
    """Return the header of a file that begins with these bytes if it names articles and titles."""
    header = find_header(file_head)
    columns = find_pair_columns(header.names) if header is not None else None
    return PairTable(header, *columns) if header is not None and columns is not None else None


def build_summary(article: str, title: str) -> Summary:
    """Return an article and its title, unaltered.

    Raises SchemaError if one of them is empty or if the title is longer than the article.
    """
    for name, text in (("article", article), ("title", title)):
        if not text.strip():
            raise SchemaError(f"the {name} is empty")
    # No title of the real releases is as long as its article. A file with exchanged columns is
    # therefore bad in nearly every record, and its preparation fails.
    if len(title.strip()) > len(article.strip()):
        raise SchemaError(
            f"the title is longer than its article ({len(title.strip())} and "
            f"{len(article.strip())} characters): they look exchanged"
        )
    return Summary(article, title)


def decode_utf8(data: bytes) -> str:
    """Decode a record. Raises SchemaError with the likely remedy if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise SchemaError(describe_encoding(data)) from None
