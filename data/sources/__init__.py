"""The datasets that this project reads, one module for each native schema.

To add a source, write `data/sources/NAME.py` with a function that parses one raw record and a tuple
`SOURCES` of `Source` objects. Every module of this package that has such a tuple is registered by
its presence: the source is then accepted by `--source`, listed by `python -m data.prepare --help`,
and recognized in raw files by the `keys` that it states. A dataset whose records have the schema of
another one is one more entry of that module's `SOURCES`.
"""

import importlib
import pkgutil

from common.errors import UserError
from data.sources.base import Source
from data.sources.jsonl import jsonl_source


def _discover_sources() -> dict[str, Source]:
    """Return the sources of all modules of this package by name."""
    sources: dict[str, Source] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for source in getattr(module, "SOURCES", ()):
            assert source.name not in sources, f"two sources are called {source.name}"
            sources[source.name] = source
    return sources


SOURCES = _discover_sources()


def find_source(name: str) -> Source:
    """Return the source called `name`; `jsonl:FIELD` is one that reads documents from FIELD.

    Raises UserError if the name is unknown.
    """
    if name in SOURCES:
        return SOURCES[name]
    base_name, _, field = name.partition(":")
    if base_name == "jsonl" and field:
        return jsonl_source(field)
    raise UserError(
        f"--source {name}: unknown source; the sources are {', '.join(SOURCES)} (and jsonl:FIELD)"
    )
