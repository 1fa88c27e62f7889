"""Passages and files for the tests of indexes."""

import json
import random
from pathlib import Path

from data.index.passages import Passage

CHARACTERS = "天地人日月山水风云花鸟"


def random_text(seed: int, num_sentences: int) -> str:
    """Return sentences of a few different characters."""
    rng = random.Random(seed)
    sentences = (
        "".join(rng.choices(CHARACTERS, k=rng.randint(3, 12))) + "。" for _ in range(num_sentences)
    )
    return "".join(sentences)


def random_passages(count: int) -> list[Passage]:
    """Return passages of different lengths, a third of them with a title."""
    return [
        Passage("花鸟" if n % 3 == 0 else "", random_text(n, n % 5 + 1), f"a:{n}")
        for n in range(count)
    ]


def write_documents(path: Path, start: int, stop: int) -> Path:
    """Write documents of the source `jsonl`, each of one to thirty sentences."""
    rows = [
        {"text": f"{number}号。" + random_text(number, number % 30 + 1)}
        for number in range(start, stop)
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path
