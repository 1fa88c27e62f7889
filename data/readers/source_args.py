"""What is prepared: `--source NAME --input FILE…` groups, and the records they name."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from data.readers.files import Advance, Raw, expand
from data.sources import SOURCES, find_source
from data.sources.hub import hub_config, hub_records, is_hub


@dataclass(frozen=True)
class Group:
    """One `--source`, what was given to it as `--input`, and as `--dev` if its release has a dev split of its own."""

    source: str
    inputs: tuple[str, ...]
    dev: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """The files of all inputs; hub inputs name none."""
        return self._files(self.inputs) + (self._files(self.dev) if self.dev else [])

    @staticmethod
    def _files(inputs: tuple[str, ...]) -> list[Path]:
        return expand([text for text in inputs if not is_hub(text)])

    @property
    def streamed(self) -> bool:
        """Whether any of it comes from the hub, so that its size is not known."""
        return any(map(is_hub, self.inputs + self.dev))

    def records(self, advance: Advance | None, split: str | None = None) -> Iterator[Raw]:
        """The raw records of the inputs (`validation`: those of `dev`), hub datasets last."""
        source = find_source(self.source)
        inputs = self.dev if split == "validation" else self.inputs
        for path in self._files(inputs):
            yield from source.read(path, advance)
        for text in filter(is_hub, inputs):
            yield from hub_records(source, text)

    def describe(self) -> dict[str, Any]:
        """The inputs in short: how many files and bytes, and a digest of their names, sizes, beginnings and ends."""
        source, files = find_source(self.source), self.files()
        hub = [f"hub:{hub_config(source, text)}" for text in self.inputs + self.dev if is_hub(text)]
        whole, total = hashlib.sha256(), 0
        for path in files:
            try:
                size = path.stat().st_size
                with path.open("rb") as file:
                    head = file.read(1 << 16)
                    file.seek(max(size - (1 << 16), 0))
                    edges = hashlib.sha256(head + file.read(1 << 16)).hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            whole.update(json.dumps([path.name, size, edges]).encode())
            total += size
        more = {"dev": len(self._files(self.dev))} if self.dev else {}
        return {"files": len(files), "bytes": total, "digest": whole.hexdigest(), **more, **({"hub": hub} if hub else {})}


def split_groups(arguments: Sequence[str]) -> tuple[list[Group], list[str]]:
    """Split a command line into `--source X --input A B … [--dev C …]` groups and the rest.

    UserError for an incomplete group.
    """
    groups: list[tuple[str, list[str], list[str]]] = []
    rest: list[str] = []
    words = [piece for word in arguments for piece in _unjoined(word)]
    position = 0
    while position < len(words):
        word, position = words[position], position + 1
        values = list(itertools.takewhile(lambda value: not value.startswith("--"), words[position:]))
        if word == "--source":
            if len(values) != 1:
                given = " ".join(values) or "nothing"
                raise UserError(f"--source takes one name, not {given}; one of {', '.join(SOURCES)}")
            find_source(values[0])
            groups.append((values[0], [], []))
        elif word in ("--input", "--dev"):
            if not groups:
                raise UserError(f"{word}: say first what it is, with --source NAME")
            if not values:
                raise UserError(f"{word} needs files, folders, globs, or hub")
            _, inputs, dev = groups[-1]
            (inputs if word == "--input" else dev).extend(values)
        else:
            rest.append(word)
            continue
        position += len(values)
    if empty := [source for source, inputs, _ in groups if not inputs]:
        raise UserError(f"--source {empty[0]}: needs --input FILE…")
    return [Group(source, tuple(inputs), tuple(dev)) for source, inputs, dev in groups], rest


def _unjoined(word: str) -> list[str]:
    match = re.fullmatch(r"(--source|--input|--dev)=(.*)", word, re.DOTALL)
    return [match[1], match[2]] if match else [word]
