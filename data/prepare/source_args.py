"""`--source NAME --input FILE…` arguments: parse them into groups and read the records."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from data.readers.files import ProgressCallback, RawItem, expand_inputs
from data.readers.hub import is_hub_input, read_hub_records, resolve_hub_config
from data.sources import SOURCES, find_source


@dataclass(frozen=True)
class SourceGroup:
    """One `--source` with its `--input` values and, if the release has a dev split, `--dev`."""

    source: str
    inputs: tuple[str, ...]
    dev: tuple[str, ...] = ()

    def file_inputs(self) -> list[str]:
        """Return the `--input` and `--dev` values except hub datasets."""
        return [input_ for input_ in self.inputs + self.dev if not is_hub_input(input_)]

    def train_files(self) -> list[Path]:
        """Return the files of all `--input` values; hub datasets have none."""
        return _expand_local_files(self.inputs)

    def dev_files(self) -> list[Path]:
        """Return the files of all `--dev` values."""
        return _expand_local_files(self.dev)

    def hub_datasets(self) -> list[str]:
        """Return `hub:CONFIG` for every hub dataset among `--input` and `--dev` values.

        CONFIG is the default of the source where the value names none. Raises UserError if the
        source is not on the hub.
        """
        source = find_source(self.source)
        hub_inputs = filter(is_hub_input, self.inputs + self.dev)
        return [
            f"hub:{resolve_hub_config(source.require_hub(hub_input), hub_input)}"
            for hub_input in hub_inputs
        ]

    @property
    def is_streamed(self) -> bool:
        """Return whether any input comes from the hub, so that its size is unknown."""
        return any(map(is_hub_input, self.inputs + self.dev))

    def read_records(
        self, on_bytes_read: ProgressCallback | None, split: str | None = None
    ) -> Iterator[RawItem]:
        """Yield the raw records of the `--input` values, those of files before hub datasets.

        With the split `validation` they are those of the `--dev` values instead.
        """
        source = find_source(self.source)
        inputs = self.dev if split == "validation" else self.inputs
        for path in _expand_local_files(inputs):
            yield from source.read(path, on_bytes_read)
        for hub_input in filter(is_hub_input, inputs):
            yield from read_hub_records(source.require_hub(hub_input), hub_input)


def _expand_local_files(inputs: Sequence[str]) -> list[Path]:
    """Return the files that inputs name, without the hub datasets among them."""
    return expand_inputs([input_ for input_ in inputs if not is_hub_input(input_)])


def parse_source_groups(arguments: Sequence[str]) -> tuple[list[SourceGroup], list[str]]:
    """Split a command line into `--source X --input A … [--dev B …]` groups and other arguments.

    Raises UserError for an incomplete group or an unknown source.
    """
    # Source, inputs and dev files of each group.
    groups: list[tuple[str, list[str], list[str]]] = []
    remaining: list[str] = []
    tokens = [token for argument in arguments for token in _split_assignment(argument)]
    position = 0
    while position < len(tokens):
        token = tokens[position]
        position += 1
        values = list(itertools.takewhile(_is_value, tokens[position:]))
        if token == "--source":
            if len(values) != 1:
                given = " ".join(values) or "nothing"
                raise UserError(
                    f"--source takes one name, not {given}; one of {', '.join(SOURCES)}"
                )
            find_source(values[0])  # raises UserError for an unknown source
            groups.append((values[0], [], []))
        elif token in ("--input", "--dev"):
            if not groups:
                raise UserError(f"{token}: name its source first, with --source NAME")
            if not values:
                raise UserError(f"{token} needs files, folders or globs, or the word hub")
            _, inputs, dev = groups[-1]
            target = inputs if token == "--input" else dev
            target.extend(values)
        else:
            # The values of other options are tokens of their own, which come here in turn.
            remaining.append(token)
            continue
        position += len(values)
    for source, inputs, _ in groups:
        if not inputs:
            raise UserError(f"--source {source}: needs --input FILE…")
    source_groups = [
        SourceGroup(source, tuple(inputs), tuple(dev)) for source, inputs, dev in groups
    ]
    return source_groups, remaining


def _is_value(token: str) -> bool:
    return not token.startswith("--")


def _split_assignment(token: str) -> list[str]:
    """Return `--source=X` as `--source`, `X`, and the same for `--input` and `--dev`."""
    match = re.fullmatch(r"(--source|--input|--dev)=(.*)", token, re.DOTALL)
    return [match[1], match[2]] if match else [token]
