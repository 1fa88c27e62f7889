"""A few sound records of every source in the shape of its release, ways to spoil them, and what becomes of them.

`ROWS` has the records; tests of bad data spoil them in every way that files are spoilt.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from data.records import BadRecord, Conversation, Document, Record, Summary, Unused
from data.sources import SOURCES

QUICK = settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
Row = dict[str, Any]
WORDS = "春天的风从山那边吹过来，河水慢慢涨高，村里的人把船推下水，说今年的鱼一定又大又肥。"


def said(number: int) -> str:
    """A sentence of its own that cleaning keeps and no deduplication takes for another."""
    chance = random.Random(number)
    return "".join(chance.choices(WORDS, k=60)) + f"第{number}句"


def _dialogue(number: int) -> str:
    return f"Human:{said(number)}\n\nAssistant:{said(number + 100)}"


# Source → a row of its release; the first keys, as many as REQUIRED says, cannot be left out.
ROWS: dict[str, Callable[[int], Row]] = {
    "wikipedia": lambda n: {"text": said(n), "id": str(n), "url": "u", "title": f"题{n}"},
    "wiki_zh_2019": lambda n: {"text": f"题{n}\n\n{said(n)}", "id": str(n), "url": "u", "title": f"题{n}"},
    "mnbvc": lambda n: {"段落": [{"行号": 1, "内容": said(n)}], "文件名": f"{n}", "simhash": 2**64 - 1},
    "mnbvc_qa": lambda n: {"问": said(n), "答": said(n + 100), "id": n, "元数据": {"问题明细": said(n + 200)}},
    "jsonl": lambda n: {"text": said(n), "source": "x"},
    "redgpt": lambda n: {"reference": said(n), "dialogue": _dialogue(n)},
    "naturalconv": lambda n: {"content": [said(n), said(n + 100)], "dialog_id": str(n)},
    "belle-0.5m": lambda n: {"output": said(n), "instruction": said(n + 100), "input": ""},
    "belle-0.8m": lambda n: {"output": said(n), "instruction": f"Human:{said(n + 100)}\nAssistant:", "input": ""},
    "deepctrl": lambda n: {"output": said(n), "instruction": said(n + 100), "input": "", "history": [["问", "答"]]},
    "pclue": lambda n: {"input": said(n), "target": said(n + 100), "type": "mrc", "answer_choices": ""},
    "alpaca": lambda n: {"output": said(n), "instruction": said(n + 100), "input": ""},
    "sharegpt": lambda n: {"conversations": [{"from": "human", "value": said(n)}, {"from": "gpt", "value": said(n + 100)}]},
    "openai": lambda n: {"messages": [{"role": "user", "content": said(n)}, {"role": "assistant", "content": said(n + 100)}]},
    "csl": lambda n: {"content": said(n) + said(n + 100), "summary": said(n + 200)},
    "lcsts": lambda n: {"text": said(n) + said(n + 100), "summary": said(n + 200)},
}
REQUIRED = {"mnbvc_qa": 2, "redgpt": 2, "pclue": 2, "csl": 2, "lcsts": 2}
LISTS = {"naturalconv", "alpaca"}


def dumped(row: object) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def framed(name: str, rows: list[bytes]) -> bytes:
    """Rows as the release of a source writes them."""
    return b"[" + b",\n".join(rows) + b"]" if name in LISTS else b"".join(row + b"\n" for row in rows)


def table(number: int) -> bytes:
    return f"{said(number)}\t{said(number + 100) * 2}\n".encode()


def pseudo_xml(number: int) -> bytes:
    text = f"<doc id={number}>\n<human_label>5</human_label>\n<summary>\n{said(number)}\n</summary>\n"
    return (text + f"<short_text>\n{said(number + 100) * 2}\n</short_text>\n</doc>\n").encode()


# Every shape that is read: name → its source and record number → bytes, one record by itself.
LINES: dict[str, tuple[str, Callable[[int], bytes]]] = {
    **{name: (name, lambda n, row=row: dumped(row(n)) + b"\n") for name, row in ROWS.items() if name not in LISTS},
    "csl table": ("csl", table), "lcsts native": ("lcsts", pseudo_xml),
}


def split(name: str, path: Path) -> tuple[list[Record], list[BadRecord]]:
    """What a source makes of a file, after a look whether each bad record names its place in one printable line."""
    found = list(SOURCES[name].open(path))
    bad = [record for record in found if isinstance(record, BadRecord)]
    for record in bad:
        assert record.file == str(path) and record.line >= 1
        assert record.reason and record.reason.isprintable() and len(record.reason) < 1000
    return [record for record in found if isinstance(record, Document | Conversation | Summary)], bad


def sound(name: str, rows: list[Row]) -> list[Record]:
    return [record for record in map(SOURCES[name].parse, map(dumped, rows)) if not isinstance(record, Unused)]


def _without(row: Row, key: str) -> Row:
    return {k: v for k, v in row.items() if k != key}


def spoilt(name: str) -> dict[str, bytes]:
    """The third row of a source, spoilt in every way that must cost it and nothing else."""
    row, keys = ROWS[name](2), list(ROWS[name](2))[: REQUIRED.get(name, 1)]
    whole = dumped(row)
    found = {f"no {key}": dumped(_without(row, key)) for key in keys}
    found |= {
        f"{key} is {value!r}": dumped({**row, key: value})
        for key in keys for value in (None, True, 7, -1.5, [], {}, [1, None], {"a": 1}, [[]], "", " \n")
        if not (name == "mnbvc" and value in ([], {})) and not (name == "mnbvc_qa" and not str(value).strip())
        and not (name in ("wikipedia", "wiki_zh_2019", "jsonl") and isinstance(value, str))
    }
    found |= {
        "invalid UTF-8": whole.replace("风".encode(), b"\xff\xfe", 1), "a character cut in two": whole.replace(
            "春".encode(), "春".encode()[:2], 1),
        "lone surrogate": json.dumps(row).encode().replace(b"\\u", b"\\ud800\\u", 1), "NUL": whole.replace(b'": ', b'": \0', 1),
        "deep nesting": b'{"%s": ' % keys[0].encode() + b"[" * 5000 + b"]" * 5000 + b"}",
        "deep objects": b'{"%s": ' % keys[0].encode() + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        "gigantic number": dumped(row)[:-1] + b', "n": 1%s}' % (b"0" * 5000) if name in LISTS else b"1" * 5000,
        "no object": b'"text"', "empty object": b"{}", "keys that are no text": b"{1: 2}",
        "a control code in a key": b'{"a\\nb\\u001b[31m": 1}', "a key of a megabyte": b'{"%s": 1}' % (b"k" * (1 << 20)),
    }
    if name in LISTS:
        del found["gigantic number"]  # JSON sets no limit: the standard parser reads it, orjson as a float
    else:
        found["cut short"] = whole[: len(whole) // 2]
        found["two on a line"] = whole + whole
    return found


KEYS = sorted({key for row in ROWS.values() for key in row(0)} | {
    "行号", "内容", "问题明细", "回答明细", "from", "value", "role", "system", "history", "abst", "tool_calls", "type"})
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6)
    | st.sampled_from(["human", "gpt", "user", "assistant", "Human:问\nAssistant:答", "to title\t甲\t乙", "\0", "\ufeff"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4), max_leaves=12,
)
