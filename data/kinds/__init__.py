"""The kinds of records: the half in `data` of each, one module per kind.

A module of this package that defines `KIND` is a kind, under the module's name; nothing else lists
them. `evaluate.kinds` has the other half, under the same name.
"""

import importlib
import pkgutil
from typing import Any

from common.errors import UserError
from data.kinds.base import RecordKind


def kind_names() -> list[str]:
    """Return the names of all kinds: the modules of this package except `base`."""
    module_names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in module_names if name != "base")


def find_kind(name: str) -> RecordKind[Any]:
    """Return the kind called `name`. Raises UserError if the name is unknown."""
    names = kind_names()
    if name not in names:
        raise UserError(f"unknown kind of records {name!r}; the kinds are {', '.join(names)}")
    # Imported by name, so that a new kind is a new module and no list of kinds needs a change.
    kind: RecordKind[Any] = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
