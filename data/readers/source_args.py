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
from data.readers.files import ProgressCallback, RawItem, expand_inputs
from data.sources import SOURCES, find_source
from data.sources.hub import is_hub_input, read_hub_records, resolve_hub_config


@dataclass(frozen=True)
class SourceGroup:
    """One `--source`, what was given to it as `--input`, and as `--dev` if its release has a dev split of its own."""

    source: str
    inputs: tuple[str, ...]
    dev: tuple[str, ...] = ()

    def files(self) -> list[Path]:
        """The files of all inputs; hub inputs name none."""
        return self._expand_files(self.inputs) + (self._expand_files(self.dev) if self.dev else [])

    @staticmethod
    def _expand_files(inputs: tuple[str, ...]) -> list[Path]:
        return expand_inputs([text for text in inputs if not is_hub_input(text)])

    @property
    def is_streamed(self) -> bool:
        """Whether any of it comes from the hub, so that its size is not known."""
        return any(map(is_hub_input, self.inputs + self.dev))

    def read_records(
        self, on_bytes_read: ProgressCallback | None, split: str | None = None
    ) -> Iterator[RawItem]:
        """The raw records of the inputs (`validation`: those of `dev`), hub datasets last."""
        source = find_source(self.source)
        inputs = self.dev if split == "validation" else self.inputs
        for path in self._expand_files(inputs):
            yield from source.read(path, on_bytes_read)
        for text in filter(is_hub_input, inputs):
            yield from read_hub_records(source, text)

    def summarize(self) -> dict[str, Any]:
        """The inputs in short: how many files and bytes, and a digest of their names, sizes, beginnings and ends."""
        source, files = find_source(self.source), self.files()
        hub = [
            f"hub:{resolve_hub_config(source, text)}"
            for text in self.inputs + self.dev
            if is_hub_input(text)
        ]
        digest, total_bytes = hashlib.sha256(), 0
        for path in files:
            try:
                size = path.stat().st_size
                with path.open("rb") as file:
                    head = file.read(1 << 16)
                    file.seek(max(size - (1 << 16), 0))
                    edges = hashlib.sha256(head + file.read(1 << 16)).hexdigest()
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
            digest.update(json.dumps([path.name, size, edges]).encode())
            total_bytes += size
        dev_fields = {"dev": len(self._expand_files(self.dev))} if self.dev else {}
        return {
            "files": len(files),
            "bytes": total_bytes,
            "digest": digest.hexdigest(),
            **dev_fields,
            **({"hub": hub} if hub else {}),
        }


def parse_source_groups(arguments: Sequence[str]) -> tuple[list[SourceGroup], list[str]]:
    """Split a command line into `--source X --input A B … [--dev C …]` groups and the rest.

    UserError for an incomplete group.
    """
    groups: list[tuple[str, list[str], list[str]]] = []
    rest: list[str] = []
    tokens = [piece for token in arguments for piece in _split_assignment(token)]
    position = 0
    while position < len(tokens):
        token, position = tokens[position], position + 1
        values = list(
            itertools.takewhile(lambda value: not value.startswith("--"), tokens[position:])
        )
        if token == "--source":
            if len(values) != 1:
                given = " ".join(values) or "nothing"
                raise UserError(
                    f"--source takes one name, not {given}; one of {', '.join(SOURCES)}"
                )
            find_source(values[0])
            groups.append((values[0], [], []))
        elif token in ("--input", "--dev"):
            if not groups:
                raise UserError(f"{token}: say first what it is, with --source NAME")
            if not values:
                raise UserError(f"{token} needs files, folders, globs, or hub")
            _, inputs, dev = groups[-1]
            (inputs if token == "--input" else dev).extend(values)
        else:
            rest.append(token)
            continue
        position += len(values)
    if empty := [source for source, inputs, _ in groups if not inputs]:
        raise UserError(f"--source {empty[0]}: needs --input FILE…")
    return [SourceGroup(source, tuple(inputs), tuple(dev)) for source, inputs, dev in groups], rest


def _split_assignment(token: str) -> list[str]:
    match = re.fullmatch(r"(--source|--input|--dev)=(.*)", token, re.DOTALL)
    return [match[1], match[2]] if match else [token]
