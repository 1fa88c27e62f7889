"""What the summarisation datasets share: an article and its title, and how an exchange of the two is noticed."""

from data.records import Summary
from data.sources.base import SchemaError


def build_summary(article: str, title: str) -> Summary:
    """An article with its title, both as they are. BadRow if one is empty, or if they look exchanged.

    No title of the real releases is as long as its article, and an abstract is some ten times as long as its title: a
    file with the two exchanged is wrong in nearly every record, so that its preparation fails.
    """
    for name, text in (("article", article), ("title", title)):
        if not text.strip():
            raise SchemaError(f"the {name} is empty")
    if len(title.strip()) > len(article.strip()):
        raise SchemaError(
            f"the title is longer than its article ({len(title.strip())} and {len(article.strip())} characters): "
            "they look exchanged"
        )
    return Summary(article, title)


def decode_utf8(data: bytes) -> str:
    """The text of a record that is no JSON. BadRow, naming the likely cure, if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"not UTF-8 (byte 0x{data[error.start]:02x}); if it is GBK, convert it: iconv -f gb18030 -t utf-8"
        ) from None
