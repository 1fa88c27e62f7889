"""Valid records of every source in the format of its release, and ways to corrupt them.

`ROW_BUILDERS` builds the records; tests of bad data corrupt them and check the result.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from data.records import BadRecord, Record, SkippedRecord
from data.sources import SOURCES

QUICK_SETTINGS = settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Row = dict[str, Any]
SENTENCE_CHARACTERS = (
    "春天的风从山那边吹过来，河水慢慢涨高，村里的人把船推下水，说今年的鱼一定又大又肥。"
)


def unique_sentence(number: int) -> str:
    """Return a unique sentence that passes cleaning and is not a near-duplicate of another."""
    rng = random.Random(number)
    return "".join(rng.choices(SENTENCE_CHARACTERS, k=60)) + f"第{number}句"


def _dialogue(number: int) -> str:
    return f"Human:{unique_sentence(number)}\n\nAssistant:{unique_sentence(number + 100)}"


# Source → a row of its release; the first NUM_REQUIRED_KEYS keys cannot be left out.
ROW_BUILDERS: dict[str, Callable[[int], Row]] = {
    "wikipedia": lambda n: {
        "text": unique_sentence(n),
        "id": str(n),
        "url": "u",
        "title": f"题{n}",
    },
    "wiki_zh_2019": lambda n: {
        "text": f"题{n}\n\n{unique_sentence(n)}",
        "id": str(n),
        "url": "u",
        "title": f"题{n}",
    },
    "mnbvc": lambda n: {
        "段落": [{"行号": 1, "内容": unique_sentence(n)}],
        "文件名": f"{n}",
        "simhash": 2**64 - 1,
    },
    "mnbvc_qa": lambda n: {
        "问": unique_sentence(n),
        "答": unique_sentence(n + 100),
        "id": n,
        "元数据": {"问题明细": unique_sentence(n + 200)},
    },
    "jsonl": lambda n: {"text": unique_sentence(n), "source": "x"},
    "redgpt": lambda n: {"reference": unique_sentence(n), "dialogue": _dialogue(n)},
    "naturalconv": lambda n: {
        "content": [unique_sentence(n), unique_sentence(n + 100)],
        "dialog_id": str(n),
    },
    "belle-0.5m": lambda n: {
        "output": unique_sentence(n),
        "instruction": unique_sentence(n + 100),
        "input": "",
    },
    "belle-0.8m": lambda n: {
        "output": unique_sentence(n),
        "instruction": f"Human:{unique_sentence(n + 100)}\nAssistant:",
        "input": "",
    },
    "deepctrl": lambda n: {
        "output": unique_sentence(n),
        "instruction": unique_sentence(n + 100),
        "input": "",
        "history": [["问", "答"]],
    },
    "pclue": lambda n: {
        "input": unique_sentence(n),
        "target": unique_sentence(n + 100),
        "type": "mrc",
        "answer_choices": "",
    },
    "alpaca": lambda n: {
        "output": unique_sentence(n),
        "instruction": unique_sentence(n + 100),
        "input": "",
    },
    "sharegpt": lambda n: {
        "conversations": [
            {"from": "human", "value": unique_sentence(n)},
            {"from": "gpt", "value": unique_sentence(n + 100)},
        ]
    },
    "firefly": lambda n: {
        "conversation": [{"human": unique_sentence(n), "assistant": unique_sentence(n + 100)}]
    },
    "ms-swift": lambda n: {
        "response": unique_sentence(n),
        "query": unique_sentence(n + 100),
        "history": [["问", "答"]],
    },
    "openai": lambda n: {
        "messages": [
            {"role": "user", "content": unique_sentence(n)},
            {"role": "assistant", "content": unique_sentence(n + 100)},
        ]
    },
    "preferences": lambda n: {
        "prompt": unique_sentence(n),
        "chosen": unique_sentence(n + 100),
        "rejected": unique_sentence(n + 200),
    },
    "squad": lambda n: {
        "context": unique_sentence(n),
        "question": unique_sentence(n + 100),
        "answers": {"text": [unique_sentence(n + 200)], "answer_start": [0]},
        "id": str(n),
    },
    "csl": lambda n: {
        "content": unique_sentence(n) + unique_sentence(n + 100),
        "summary": unique_sentence(n + 200),
    },
    "lcsts": lambda n: {
        "text": unique_sentence(n) + unique_sentence(n + 100),
        "summary": unique_sentence(n + 200),
    },
}
NUM_REQUIRED_KEYS = {
    "mnbvc_qa": 2,
    "redgpt": 2,
    "pclue": 2,
    "squad": 3,
    "preferences": 3,
    "csl": 2,
    "lcsts": 2,
}
JSON_ARRAY_SOURCES = {"naturalconv", "alpaca"}


def to_json_bytes(row: object) -> bytes:
    """Return a row as JSON with unescaped Chinese, as the releases have it."""
    return json.dumps(row, ensure_ascii=False).encode()


def join_rows(source: str, rows: list[bytes]) -> bytes:
    """Return rows of JSON as a file of a source: one JSON array, or a line per row."""
    if source in JSON_ARRAY_SOURCES:
        return b"[" + b",\n".join(rows) + b"]"
    return b"".join(row + b"\n" for row in rows)


def tsv_row(number: int) -> bytes:
    """Return a line of CSL's table: a title, a tab, and the abstract."""
    return f"{unique_sentence(number)}\t{unique_sentence(number + 100) * 2}\n".encode()


def pseudo_xml_document(number: int) -> bytes:
    """Return a document of LCSTS, which is XML without quotes around attributes."""
    return (
        f"<doc id={number}>\n<human_label>5</human_label>\n"
        f"<summary>\n{unique_sentence(number)}\n</summary>\n"
        f"<short_text>\n{unique_sentence(number + 100) * 2}\n</short_text>\n</doc>\n"
    ).encode()


# File format → its source, and a function from record number to the bytes of one record.
RECORD_WRITERS: dict[str, tuple[str, Callable[[int], bytes]]] = {
    **{
        name: (name, lambda n, row=row: to_json_bytes(row(n)) + b"\n")
        for name, row in ROW_BUILDERS.items()
        if name not in JSON_ARRAY_SOURCES
    },
    "csl table": ("csl", tsv_row),
    "lcsts native": ("lcsts", pseudo_xml_document),
}


def read_good_and_bad(source: str, path: Path) -> tuple[list[Record], list[BadRecord]]:
    """Read a file by a source; return its records and its bad records.

    Checks that each bad record gives its file, its line and a reason of one printable line.
    """
    records = list(SOURCES[source].iter_records(path))
    bad_records = [record for record in records if isinstance(record, BadRecord)]
    for record in bad_records:
        assert record.file == str(path) and record.line >= 1
        assert record.reason and record.reason.isprintable() and len(record.reason) < 1000
    return [record for record in records if isinstance(record, Record)], bad_records


def parse_rows(source: str, rows: list[Row]) -> list[Record]:
    """Return the records that a source makes of rows, without those that it skips on purpose."""
    records = [SOURCES[source].parse(to_json_bytes(row)) for row in rows]
    return [record for record in records if not isinstance(record, SkippedRecord)]


def _drop_key(row: Row, key: str) -> Row:
    return {k: v for k, v in row.items() if k != key}


def corrupt_row_variants(source: str) -> dict[str, bytes]:
    """Return the third row of a source, corrupted in ways that must reject only this row.

    The keys of the result say what is wrong.
    """
    row = ROW_BUILDERS[source](2)
    keys = list(row)[: NUM_REQUIRED_KEYS.get(source, 1)]
    intact_row = to_json_bytes(row)
    variants = {f"no {key}": to_json_bytes(_drop_key(row, key)) for key in keys}
    variants |= {
        f"{key} is {value!r}": to_json_bytes({**row, key: value})
        for key in keys
        for value in (None, True, 7, -1.5, [], {}, [1, None], {"a": 1}, [[]], "", " \n")
        # These values are valid in these sources: documents and questions may be empty.
        if not (source == "mnbvc" and value in ([], {}))
        and not (source == "mnbvc_qa" and not str(value).strip())
        # A pair with an empty answer is left out on purpose.
        and not (source == "preferences" and key != "prompt" and value in ("", " \n"))
        and not (source in ("wikipedia", "wiki_zh_2019", "jsonl") and isinstance(value, str))
    }
    variants |= {
        "invalid UTF-8": intact_row.replace("风".encode(), b"\xff\xfe", 1),
        "a character cut in two": intact_row.replace("春".encode(), "春".encode()[:2], 1),
        "lone surrogate": json.dumps(row).encode().replace(b"\\u", b"\\ud800\\u", 1),
        "NUL": intact_row.replace(b'": ', b'": \0', 1),
        "deep nesting": b'{"%s": ' % keys[0].encode() + b"[" * 5000 + b"]" * 5000 + b"}",
        "deep objects": b'{"%s": ' % keys[0].encode() + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}",
        "gigantic number": to_json_bytes(row)[:-1] + b', "n": 1%s}' % (b"0" * 5000)
        if source in JSON_ARRAY_SOURCES
        else b"1" * 5000,
        "no object": b'"text"',
        "empty object": b"{}",
        "keys that are no text": b"{1: 2}",
        "a control code in a key": b'{"a\\nb\\u001b[31m": 1}',
        "a key of a megabyte": b'{"%s": 1}' % (b"k" * (1 << 20)),
    }
    if source in JSON_ARRAY_SOURCES:
        del variants[
            "gigantic number"
        ]  # JSON sets no limit: the standard parser reads it, orjson as a float
    else:
        variants["cut short"] = intact_row[: len(intact_row) // 2]
        variants["two on a line"] = intact_row + intact_row
    return variants


JSON_KEYS = sorted(
    {key for row in ROW_BUILDERS.values() for key in row(0)}
    | {
        "行号",
        "内容",
        "问题明细",
        "回答明细",
        "from",
        "value",
        "role",
        "system",
        "history",
        "abst",
        "tool_calls",
        "human",
        "assistant",
        "content",
        "label",
        "chosen",
        "rejected",
        "prompt",
        "score_chosen",
        "score_rejected",
        "weight",
        "loss_mask",
        "train_detail",
        "paragraphs",
        "qas",
        "is_impossible",
        "begin_offset",
        "end_offset",
        "train",
        "type",
    }
)
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(
        [
            "human",
            "gpt",
            "user",
            "assistant",
            "Human:问\nAssistant:答",
            "to title\t甲\t乙",
            "\0",
            "\ufeff",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(JSON_KEYS), inner, max_size=4)
    ),
    max_leaves=12,
)
