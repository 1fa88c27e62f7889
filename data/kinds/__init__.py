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
    """Return the names of all kinds."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in modules if name != "base")


def find_kind(name: str) -> RecordKind[Any]:
    """Return the kind called `name`. Raises UserError if there is none."""
    if name not in kind_names():
        raise UserError(f"there is no kind of records called {name!r}: {', '.join(kind_names())}")
    kind: RecordKind[Any] = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
