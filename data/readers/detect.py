"""Which source reads a raw file: told from its first bytes, its name and the keys of its first record."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.files import read_head, read_records
from data.records import BadRecord
from data.sources import csl, lcsts

PLAIN_TEXT_SUFFIXES = frozenset({".txt", ".text", ".md"})
# The keys of a first record that settle the matter, most telling first.
KEY_SIGNATURES = (
    ({"文件名", "段落"}, "mnbvc"),
    ({"问", "答"}, "mnbvc_qa"),
    ({"chosen", "rejected"}, None),
    ({"reference", "dialogue"}, "redgpt"),
    ({"dialog_id", "content"}, "naturalconv"),
    ({"conversations"}, "sharegpt"),
    ({"messages"}, "openai"),
    ({"instruction", "input", "output", "history"}, "deepctrl"),
    ({"instruction", "input", "output"}, "belle-0.5m"),
    ({"instruction", "input", "target"}, "belle-0.5m"),
    ({"instruction", "output"}, "alpaca"),
    ({"input", "target", "type"}, "pclue"),
    ({"input", "target", "answer_choices"}, "pclue"),
    ({"input", "target"}, "belle-0.5m"),
    ({"content", "summary"}, "csl"),
    ({"title", "abst"}, "csl"),
    ({"summary", "text"}, "lcsts"),
    ({"id", "url", "title", "text"}, "wikipedia"),
    ({"text"}, "jsonl"),
)


def detect_source(files: list[Path]) -> str:
    """The one source that reads all of `files`. UserError, naming the cure, when that cannot be told or they differ."""
    sources = {file: _detect_file_source(file) for file in files}
    first = files[0]
    for file, source in sources.items():
        if source != sources[first]:
            raise UserError(
                f"{first} is read as {sources[first]} but {file} as {source}: give files of one kind, or prepare each "
                "kind by itself with python -m data.prepare --source NAME"
            )
    return sources[first]


def _detect_file_source(path: Path) -> str:
    file_head = read_head(path)
    if lcsts.is_native_lcsts(file_head):
        return lcsts.SOURCE.name
    if Path(path.name.removesuffix(".gz")).suffix.lower() in PLAIN_TEXT_SUFFIXES:
        return "text"
    if csl.is_csl_table(file_head):
        return csl.SOURCE.name
    first = next(read_records(path), None)
    if first is None:
        raise UserError(f"{path} is empty")
    row = {} if isinstance(first, BadRecord) else _try_parse_object(first.data)
    source = next((source for keys, source in KEY_SIGNATURES if keys <= row.keys()), None)
    if source is not None:
        return _refine_source(source, row, is_list=file_head.lstrip().startswith(b"["))
    observation = (
        f"its first record has {', '.join(list(row)[:12])}"
        if row
        else "it does not begin with a JSON object"
    )
    raise UserError(
        f"{path}: cannot tell which source reads this ({observation}): docs/data.md lists what can be read; if this is one of "
        f"those, name it with python -m data.prepare --source NAME --input {path} --tokenizer PATH --out DIR"
    )


def _refine_source(source: str, row: dict[str, Any], is_list: bool) -> str:
    """The source among those whose records have the same keys."""
    if source == "wikipedia" and str(row["text"]).startswith(f"{row['title']}\n"):
        # Only wiki_zh_2019 repeats the title as the first line of its text.
        return "wiki_zh_2019"
    if source == "belle-0.5m" and str(row.get("instruction", "")).startswith("Human:"):
        return "belle-0.8m"
    if source in ("belle-0.5m", "deepctrl") and is_list:
        # All Belle and deepctrl files are lines; a list of such records is Alpaca's.
        return "alpaca"
    return source


def _try_parse_object(data: bytes) -> dict[str, Any]:
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}
