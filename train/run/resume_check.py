"""Compare the record of a run that is resumed with the one in its `run.json`.

A record is a dict with the keys `shards` (the folders of the shard sets) and `fingerprints`, see
`train.run.spec.RunSpec.record`.
"""

import re
from pathlib import Path
from typing import Any

# Number of characters of a sha256 that messages show.
SHORT_SHA256 = 8


def find_differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return a line `name: old value -> new value` for each fingerprint that differs.

    `old` and `new` are records. Fingerprints that only `new` has are not compared, because earlier
    versions wrote fewer of them.
    """
    lines = []
    for name, old_value in old["fingerprints"].items():
        new_value = new["fingerprints"].get(name)
        # The digest of a shard set alone would not tell the user which set it is.
        if name == "data" and old_value != new_value:
            lines.append(f"data: {_format_data(old)} -> {_format_data(new)}")
        else:
            lines += _compare(name, old_value, new_value)
    return lines


def _compare(name: str, old: Any, new: Any) -> list[str]:
    """Return the differences of two values as lines; dicts are compared key by key."""
    if old == new:
        return []
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [f"{name}: {_format_value(old)} -> {_format_value(new)}"]
    lines = []
    # The keys of both, in order.
    for key in {**old, **new}:
        lines += _compare(f"{name}.{key}", old.get(key), new.get(key))
    return lines


def _format_value(value: Any) -> str:
    """Return a value as text, a sha256 as its first characters."""
    is_sha256 = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value)
    return value[:SHORT_SHA256] if is_sha256 else str(value)


def _format_data(record: dict[str, Any]) -> str:
    """Return the shard sets of a record in the form of --data, with their fingerprints."""
    sets = []
    for folder, entry in zip(record["shards"], record["fingerprints"]["data"], strict=True):
        path = Path(folder)
        if path.is_relative_to(Path.cwd()):
            path = path.relative_to(Path.cwd())
        weight = "" if entry["weight"] == 1 else f":{entry['weight']:g}"
        share = f", curriculum to {entry['final_share']:g}" if "final_share" in entry else ""
        sets.append(f"{path}{weight} (content {_format_value(entry['set'])}{share})")
    return " + ".join(sets) or "none"
