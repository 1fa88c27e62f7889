"""Invented conversations about passages, for tests of learning from rewards."""

import json
from pathlib import Path

from common.files import write_atomic


def write_questions(path: Path, count: int) -> Path:
    """Write passages with two questions each, as lines of the source redgpt."""
    lines = []
    for number in range(count):
        subject = chr(0x4E00 + 37 * number)
        row = {
            "reference": f"{subject}有{number % 9}个。",
            "dialogue": f"Human: {subject}有几个？\n\nAssistant: {number % 9}个。\n\n"
            f"Human: 谁有？\n\nAssistant: {subject}。",
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    write_atomic(path, "".join(lines))
    return path
