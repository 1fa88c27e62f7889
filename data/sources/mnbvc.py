"""MNBVC's general schema (通用): JSONL of one article a line, as a list of its paragraphs."""

from typing import Any

from data.readers.hub import HubDataset
from data.records import Document
from data.sources.base import SchemaError, Source, list_keys, parse_json_object

HUB_FILES = "hf://datasets/liwu/MNBVC/{folder}/*.jsonl.gz"


def parse_mnbvc(data: bytes) -> Document:
    """Return the paragraphs (段落) of one article in the order of line numbers (行号), one a line.

    Blank paragraphs are left out. Those flagged as repeated (是否重复) stay: an article without its
    refrain or its heading is incomplete, and deduplication compares whole documents. Raises
    SchemaError if the record has no field 段落, or a paragraph no string 内容.
    """
    row = parse_json_object(data)
    if "段落" not in row:
        raise SchemaError(
            f"there is no field '段落' of MNBVC's general schema; there are: {list_keys(row)}"
        )
    numbered_paragraphs = sorted(_parse_paragraphs(row["段落"]), key=lambda item: item[0])
    return Document("\n".join(text for _, text in numbered_paragraphs if text.strip()))


def _parse_paragraphs(value: Any) -> list[tuple[int, str]]:
    """Return (line number, text) of every paragraph in the field 段落.

    The line number is 行号 or, where that is missing, the paragraph's position; the text is 内容.
    Raises SchemaError if a paragraph has no string 内容, or 段落 another shape.
    """
    if isinstance(value, dict):
        # The hub's tables turn a list of objects into an object of lists.
        numbers, texts = value.get("行号"), value.get("内容")
        if not isinstance(numbers, list) or not isinstance(texts, list):
            raise SchemaError("段落 is an object without the lists 行号 and 内容")
        if len(numbers) != len(texts):
            raise SchemaError(
                f"the lists of 段落 differ in length: {len(numbers)} in 行号, {len(texts)} in 内容"
            )
        value = [
            {"行号": number, "内容": text} for number, text in zip(numbers, texts, strict=True)
        ]
    if not isinstance(value, list):
        raise SchemaError(f"段落 is {type(value).__name__}, not a list")
    paragraphs = []
    for position, item in enumerate(value):
        text = item.get("内容") if isinstance(item, dict) else None
        if not isinstance(text, str):
            raise SchemaError(f"paragraph {position} has no text in 内容")
        number = item.get("行号")
        paragraphs.append((number if isinstance(number, int) else position, text))
    return paragraphs


SOURCES = (
    Source(
        name="mnbvc",
        description="MNBVC in its general shape (通用): news, wiki, law, books …; an article is "
        "its paragraphs in order",
        parse=parse_mnbvc,
        hub=HubDataset("liwu/MNBVC", "news/20230196", data_files=HUB_FILES),
        keys=(frozenset({"文件名", "段落"}),),
    ),
)
