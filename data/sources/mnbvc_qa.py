"""MNBVC's question-and-answer schema (问答, as in `qa_zhihu`): JSONL of one pair a line."""

from typing import Any

from data.readers.hub import HubDataset
from data.records import Document
from data.sources.base import (
    SchemaError,
    Source,
    parse_json_object,
    require_text,
    strip_blank_lines,
)
from data.sources.mnbvc import HUB_FILES


def parse_mnbvc_qa(data: bytes) -> Document:
    """Return question, details, answer, details (问, 问题明细, 答, 回答明细), one line each.

    Some releases have the details in 元数据, others beside 问 and 答. Details are left out if the
    question or answer contains them, and replace it if they begin with it. Raises SchemaError if 问
    or 答 is missing, if a field is not text, or if all of them are empty.
    """
    row = parse_json_object(data)
    metadata = row.get("元数据")
    if not isinstance(metadata, dict):
        metadata = {}
    parts: list[str] = []
    for field, detail_field in (("问", "问题明细"), ("答", "回答明细")):
        text = strip_blank_lines(require_text(row, field))
        detail = _optional_text(metadata, detail_field) or _optional_text(row, detail_field)
        # Also true for empty details.
        if detail.strip() in text:
            parts.append(text)
        elif detail.strip().startswith(text.strip()):
            parts.append(detail)
        else:
            parts += [text, detail]
    parts = [part for part in parts if part]
    if not parts:
        raise SchemaError("问 and 答 are both empty")
    return Document("\n".join(parts))


def _optional_text(row: dict[str, Any], field: str) -> str:
    """Return the text of a field without blank lines around it, or "" if it is missing or null."""
    return strip_blank_lines(require_text(row, field)) if row.get(field) is not None else ""


SOURCES = (
    Source(
        name="mnbvc_qa",
        description="MNBVC in its question-and-answer shape (问答), as qa_zhihu; a pair is one "
        "document",
        parse=parse_mnbvc_qa,
        hub=HubDataset("liwu/MNBVC", "qa_zhihu", data_files=HUB_FILES),
        keys=(frozenset({"问", "答"}),),
    ),
)
