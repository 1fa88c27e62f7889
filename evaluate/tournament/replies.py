"""The replies of judges on disk, so that nothing is asked twice: JSON lines that only grow."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.locks import exclusive_lock


class Replies:
    """The replies in a file, by what was asked.

    A line is `{"key", "reply", …}`. The key is a hash of all that the reply depends on; further
    fields are for readers.
    """

    def __init__(self, path: Path) -> None:
        """Read the file, if it exists. Lines that a kill has torn are left out."""
        self.path = path
        self._by_key: dict[str, str] = {}
        if not path.is_file():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    if isinstance(row["key"], str) and isinstance(row["reply"], str):
                        self._by_key[row["key"]] = row["reply"]

    def get(self, key: str) -> str | None:
        """Return the reply to what was asked, or None if it was not asked yet."""
        return self._by_key.get(key)

    def add(self, key: str, reply: str, **fields: Any) -> None:
        """Add a reply, also to the file, at once."""
        self._by_key[key] = reply
        row = json.dumps({"key": key, "reply": reply, **fields}, ensure_ascii=False)
        # A lone surrogate, which JSON can spell, has no UTF-8.
        line = (row + "\n").encode("utf-8", "replace")
        with self.path.open("ab+") as file:
            # After a torn line, a line of its own.
            if file.tell():
                file.seek(-1, 2)
                if file.read() != b"\n":
                    file.write(b"\n")
            file.write(line)


@contextlib.contextmanager
def open_replies(path: Path) -> Iterator[Replies]:
    """Yield the replies in a file that no other process may use meanwhile.

    Raises UserError if another process does.
    """
    with exclusive_lock(path, f"{path} is in use: another command is judging; wait for its end"):
        yield Replies(path)


def hash_request(value: Any) -> str:
    """Return the key of a JSON value: all that a reply depends on."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
