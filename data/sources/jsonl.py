"""JSONL (or parquet) whose rows hold a document in one text field."""

from functools import partial

from data.records import Document
from data.sources.base import Source, row_of, text_of


def parse(data: bytes, field: str = "text") -> Document:
    """The text of `field`."""
    return Document(text_of(row_of(data), field))


def with_field(field: str) -> Source:
    """The source whose documents lie in `field`."""
    return Source(
        name="jsonl" if field == "text" else f"jsonl:{field}",
        description="JSONL or parquet rows with a document in the field `text`; `jsonl:FIELD` names another field",
        parse=partial(parse, field=field),
    )


SOURCE = with_field("text")
