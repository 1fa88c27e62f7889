"""YAML files of options: plain values, no aliases, and in `as_text` mode no guessed types."""

from pathlib import Path
from typing import Any

import yaml

from common.errors import UserError

MAX_YAML_BYTES = 1 << 20
_NULL_TAG = "tag:yaml.org,2002:null"


class _PlainLoader(yaml.SafeLoader):
    """Load YAML of plain values whose keys are strings, and refuse aliases.

    With aliases of lists of aliases, a few lines can expand to gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Override of PyYAML's method that raises YAMLError for an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read: write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Override of PyYAML's method that raises YAMLError for a key that is not a string."""
        mapping = super().construct_mapping(node, deep)
        for key in mapping:
            if not isinstance(key, str):
                raise yaml.YAMLError(f"the key {key!r} is not text")
        return mapping


class _TextLoader(_PlainLoader):
    """Load null as None and every other scalar as text: `run: 2024-01-01` is a path, not a date."""

    # First character of a scalar -> resolvers to try. Only the resolver of null is left; a scalar
    # without a resolver is text.
    yaml_implicit_resolvers = {  # noqa: RUF012
        start: [entry for entry in entries if entry[0] == _NULL_TAG]
        for start, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def load_yaml(
    path: Path, *, error_prefix: str = "--config ", as_text: bool = False
) -> dict[str, Any]:
    """Return a YAML file as a nested dict; with `as_text`, all scalars except null are strings.

    Raises UserError, one line that begins with `error_prefix` and the path, if the file is missing,
    larger than MAX_YAML_BYTES, not YAML, or not a mapping. An empty file is an empty dict.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_YAML_BYTES + 1)
        if len(data) > MAX_YAML_BYTES:
            raise UserError(
                f"{error_prefix}{path}: is larger than {MAX_YAML_BYTES >> 20} MB; "
                "a file of options is shorter"
            )
        value = yaml.load(data.decode("utf-8"), _TextLoader if as_text else _PlainLoader)
    except FileNotFoundError:
        raise UserError(f"{error_prefix}{path}: no such file") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        # ValueError: impossible dates and numbers (2024-02-30), and bytes that are not UTF-8.
        raise UserError(
            f"{error_prefix}{path}: not readable as YAML: {' '.join(str(error).split())}"
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(
            f"{error_prefix}{path}: expected keys and values, found {type(value).__name__}"
        )
    return value


def parse_items(text: str) -> list[str]:
    """Return the items of a YAML list `[a, b]`; any other text is one item."""
    if text.startswith("[") and text.endswith("]"):
        try:
            value = yaml.load(text, _TextLoader)
        except (yaml.YAMLError, ValueError, RecursionError):
            return [text]
        if isinstance(value, list):
            return value
    return [text]
