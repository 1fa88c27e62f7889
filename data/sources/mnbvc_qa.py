"""MNBVC's question-and-answer shape (问答, as in `qa_zhihu`): one pair a line."""

from typing import Any

from data.records import Document
from data.sources.base import HubDataset, SchemaError, Source, parse_json_object, require_text
from data.sources.mnbvc import HUB_FILES


def parse_mnbvc_qa(data: bytes) -> Document:
    """Question, its details, answer, its details (问, 问题明细, 答, 回答明细), joined by line ends as one document.

    The details lie in 元数据 or, in some releases, beside 问 and 答; empty ones and repetitions of what they detail
    are left out.
    """
    row = parse_json_object(data)
    metadata = row.get("元数据")
    metadata = metadata if isinstance(metadata, dict) else {}
    parts: list[str] = []
    for field, detail in (("问", "问题明细"), ("答", "回答明细")):
        text = require_text(row, field).strip()
        more = _optional_text(metadata, detail) or _optional_text(row, detail)
        parts += [text] if more in text else [more] if more.startswith(text) else [text, more]
    parts = [part for part in parts if part]
    if not parts:
        raise SchemaError("问 and 答 are both empty")
    return Document("\n".join(parts))


def _optional_text(row: dict[str, Any], field: str) -> str:
    return require_text(row, field).strip() if row.get(field) is not None else ""


SOURCE = Source(
    name="mnbvc_qa",
    description="MNBVC in its question-and-answer shape (问答), as qa_zhihu; a pair is one document",
    parse=parse_mnbvc_qa,
    hub=HubDataset("liwu/MNBVC", "qa_zhihu", data_files=HUB_FILES),
)
