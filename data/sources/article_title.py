"""Helpers of the summarization sources: articles with titles, lines that are not JSON."""

from data.records import Summary
from data.sources.base import SchemaError


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
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"not UTF-8 (byte 0x{data[error.start]:02x}); if it is GBK, convert it: iconv -f "
            "gb18030 -t utf-8"
        ) from None
