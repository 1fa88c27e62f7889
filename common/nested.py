"""Nested mappings by dotted key."""

from collections.abc import Callable, Mapping
from typing import Any


def flatten(
    values: Mapping[Any, Any], *, is_leaf: Callable[[Mapping[Any, Any]], bool] | None = None
) -> dict[str, Any]:
    """Return the leaves of a nested mapping by dotted key, in order.

    An empty mapping is a leaf, and so is one for which `is_leaf` is true.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        is_group = isinstance(value, Mapping) and value and not (is_leaf and is_leaf(value))
        if is_group:
            for inner_key, leaf in flatten(value, is_leaf=is_leaf).items():
                flat[f"{key}.{inner_key}"] = leaf
        else:
            flat[str(key)] = value
    return flat
