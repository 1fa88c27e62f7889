"""MNBVC's question-and-answer shape (问答, as in `qa_zhihu`): one pair a line."""

from typing import Any

from data.records import Document
from data.sources.base import BadRow, Hub, Source, row_of, text_of
from data.sources.mnbvc import HUB_FILES


def parse(data: bytes) -> Document:
    """Question, its details, answer, its details (问, 问题明细, 答, 回答明细), joined by line ends as one document.

    The details lie in 元数据 or, in some releases, beside 问 and 答; empty ones and repetitions of what they detail
    are left out.
    """
    row = row_of(data)
    about = row.get("元数据")
    about = about if isinstance(about, dict) else {}
    parts: list[str] = []
    for field, detail in (("问", "问题明细"), ("答", "回答明细")):
        text = text_of(row, field).strip()
        more = _optional(about, detail) or _optional(row, detail)
        parts += [text] if more in text else [more] if more.startswith(text) else [text, more]
    parts = [part for part in parts if part]
    if not parts:
        raise BadRow("问 and 答 are both empty")
    return Document("\n".join(parts))


def _optional(row: dict[str, Any], field: str) -> str:
    return text_of(row, field).strip() if row.get(field) is not None else ""


SOURCE = Source(
    name="mnbvc_qa",
    description="MNBVC in its question-and-answer shape (问答), as qa_zhihu; a pair is one document",
    parse=parse,
    hub=Hub("liwu/MNBVC", "qa_zhihu", files=HUB_FILES),
)
