"""Compare the description of a run that is resumed with the one in its `run.json`.

A record is a dict with the keys `shards`, the folders of the shard sets, and `fingerprints`, see
`train.run.spec.RunSpec`.
"""

import re
from pathlib import Path
from typing import Any

# Characters of a sha256 in messages.
SHORT_SHA256 = 8


def find_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line `entry: old value -> new value` for each entry in which two records differ.

    Entries that the old record lacks are not compared: earlier versions wrote fewer.
    """
    lines = []
    for name, old_value in old["fingerprints"].items():
        new_value = new["fingerprints"].get(name)
        if name == "data" and old_value != new_value:
            lines.append(f"data: {_format_data(old)} -> {_format_data(new)}")
        else:
            lines += _compare(name, old_value, new_value)
    return lines


def _compare(name: str, old: Any, new: Any) -> list[str]:
    if old == new:
        return []
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [f"{name}: {_format(old)} -> {_format(new)}"]
    lines = []
    for key in {**old, **new}:
        lines += _compare(f"{name}.{key}", old.get(key), new.get(key))
    return lines


def _format(value: Any) -> str:
    is_sha256 = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return value[:SHORT_SHA256] if is_sha256 else str(value)


def _format_data(record: dict[str, Any]) -> str:
    """Return the shard sets of a record as --data takes them, with their fingerprints."""
    sets = []
    for folder, entry in zip(record["shards"], record["fingerprints"]["data"], strict=True):
        path = Path(folder)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        weight = "" if entry["weight"] == 1 else f":{entry['weight']:g}"
        sets.append(f"{path}{weight} (content {_format(entry['set'])})")
    return " + ".join(sets) or "none"
