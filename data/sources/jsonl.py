"""JSONL (or parquet) whose rows have a document in one text field."""

from functools import partial

from data.records import Document
from data.sources.base import Source, parse_json_object, require_text


def parse_jsonl(data: bytes, field: str = "text") -> Document:
    """Return the document in `field`. Raises SchemaError if it is missing or not text."""
    return Document(require_text(parse_json_object(data), field))


def jsonl_source(field: str) -> Source:
    """Return the source that reads documents from `field`, called `jsonl` or `jsonl:FIELD`."""
    return Source(
        name="jsonl" if field == "text" else f"jsonl:{field}",
        description="JSONL or parquet rows with a document in the field `text`; `jsonl:FIELD` "
        "names another field",
        parse=partial(parse_jsonl, field=field),
        keys=(frozenset({field}),),
    )


SOURCES = (jsonl_source("text"),)
