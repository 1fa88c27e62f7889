"""Write records in the native formats of the datasets, as files whose bytes never vary."""

import functools
import gzip
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

# Width of the counters of `simhash`: enough for documents of 2^24 characters.
LANE_BITS = 24


def json_lines(records: Iterable[Any]) -> bytes:
    """Return JSON objects as UTF-8, one a line, with characters unescaped as in published files."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def gzip_bytes(data: bytes) -> bytes:
    """Compress without time stamp and file name, so that equal data give equal bytes."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=9, mtime=0, filename="") as file:
        file.write(data)
    return buffer.getvalue()


def simhash(text: str) -> int:
    """Return Charikar's 64-bit SimHash (2002) over character bigrams, an unsigned integer.

    A bit is set if it is set in the hashes of more than half of the bigrams.
    """
    bigrams = [text[start : start + 2] for start in range(len(text) - 1)]
    # One large integer with 64 counters of `LANE_BITS` bits: a sum counts all bits at once.
    counters = sum(map(_hash_lanes, bigrams))
    lane_mask = (1 << LANE_BITS) - 1
    return sum(
        1 << bit
        for bit in range(64)
        if 2 * (counters >> (LANE_BITS * bit) & lane_mask) > len(bigrams)
    )


@functools.cache
def _hash_lanes(bigram: str) -> int:
    """Return the 64 bits of a bigram's hash, one in each lane of `LANE_BITS` bits.

    The sum over a document's bigrams has in lane i the number of bigrams whose hash has bit i set:
    the counts that SimHash compares with half of the bigrams.
    """
    bits = int.from_bytes(hashlib.md5(bigram.encode()).digest()[:8], "big")
    return sum(1 << (LANE_BITS * bit) for bit in range(64) if bits >> bit & 1)


def mnbvc_general(name: str, paragraphs: Sequence[str], is_new_release: bool) -> dict[str, Any]:
    """Return a record of MNBVC's general schema (通用) for one article.

    The fields are file name, flags, sizes, checksums and the list of paragraphs (段落); newer
    releases add 扩展字段 (extension) and 时间 (date).
    """
    unique_paragraphs: set[str] = set()
    rows = []
    for number, paragraph in enumerate(paragraphs):
        row = {
            "行号": number,
            "是否重复": paragraph in unique_paragraphs,
            "是否跨文件重复": False,
            "md5": hashlib.md5(paragraph.encode()).hexdigest(),
            "内容": paragraph,
        }
        rows.append(row | ({"扩展字段": ""} if is_new_release else {}))
        unique_paragraphs.add(paragraph)
    text = "\n".join(paragraphs)
    record = {
        "文件名": name,
        "是否待查文件": False,
        "是否重复文件": False,
        "文件大小": len(text.encode()),
        "simhash": simhash(text),
        "最长段落长度": max(map(len, paragraphs)),
        "段落数": len(paragraphs),
        "去重段落数": len(unique_paragraphs),
        "低质量段落数": 0,
        "段落": rows,
    }
    return record | ({"扩展字段": "", "时间": "20240115"} if is_new_release else {})


def mnbvc_qa(number: int | str, question: str, answer: str) -> dict[str, Any]:
    """Return a record of MNBVC's question-and-answer schema (问答), with empty details.

    The id is a number or text: the releases have both.
    """
    return {
        "id": number,
        "问": question,
        "答": answer,
        "来源": "驼铃谷问答",
        "元数据": {
            "create_time": "20240115 08:00:00",
            "问题明细": "",
            "回答明细": "",
            "扩展字段": "",
        },
    }


def wikipedia(number: int, title: str, paragraphs: Sequence[str]) -> dict[str, str]:
    """Return a row of `wikimedia/wikipedia`, whose text does not repeat the title."""
    return {
        "id": str(number),
        "url": f"https://zh.wikipedia.org/wiki/{quote(title)}",
        "title": title,
        "text": "\n\n".join(paragraphs),
    }


def wiki_zh_2019(number: int, title: str, paragraphs: Sequence[str]) -> dict[str, str]:
    """Return a row of wiki_zh_2019, whose text begins with the title."""
    return {
        "id": str(number),
        "url": f"https://zh.wikipedia.org/wiki?curid={number}",
        "title": title,
        "text": "\n\n".join([title, *paragraphs]),
    }
