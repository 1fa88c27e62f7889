"""Which source reads a raw file: told from its name and the keys of its first record."""

from pathlib import Path
from typing import Any

from common.errors import UserError
from data.reading import records
from data.records import BadRecord

PLAIN_TEXT = frozenset({".txt", ".text", ".md"})
# The keys of a first record that settle the matter, most telling first.
KEYS = (
    ({"文件名", "段落"}, "mnbvc"),
    ({"问", "答"}, "mnbvc_qa"),
    ({"id", "url", "title", "text"}, "wikipedia"),
    ({"text"}, "jsonl"),
)


def detect(files: list[Path]) -> str:
    """The one source that reads all of `files`. UserError, naming the cure, when that cannot be told or they differ."""
    sources = {file: _detect_file(file) for file in files}
    first = files[0]
    for file, source in sources.items():
        if source != sources[first]:
            raise UserError(
                f"{first} is read as {sources[first]} but {file} as {source}: give files of one kind, or prepare each "
                "kind by itself with python -m data.prepare --source NAME"
            )
    return sources[first]


def _detect_file(path: Path) -> str:
    if Path(path.name.removesuffix(".gz")).suffix.lower() in PLAIN_TEXT:
        return "text"
    first = next(records(path), None)
    if first is None:
        raise UserError(f"{path} is empty")
    row = {} if isinstance(first, BadRecord) else _object(first.data)
    for keys, source in KEYS:
        if keys <= row.keys():
            # The same keys in both; only wiki_zh_2019 repeats the title as the first line of its text.
            repeats = source == "wikipedia" and str(row["text"]).startswith(f"{row['title']}\n")
            return "wiki_zh_2019" if repeats else source
    saw = f"its first record has {', '.join(list(row)[:12])}" if row else "it does not begin with a JSON object"
    raise UserError(
        f"{path}: cannot tell which source reads this ({saw}): name it with "
        f"python -m data.prepare --source NAME --input {path} --tokenizer PATH --out DIR"
    )


def _object(data: bytes) -> dict[str, Any]:
    import orjson

    try:
        row = orjson.loads(data)
    except orjson.JSONDecodeError:
        return {}
    return row if isinstance(row, dict) else {}
