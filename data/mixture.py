"""The names and weights of `--data`: a single set or a mixture, such as `csl+belle-0.8m:0.5`.

A name may be derived, `long(wikipedia,4096)`: see `data.derived_name`.
"""

import contextlib
import math
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from data.derived_name import parse_derived_name

# The name that stands for the pretraining text of the base.
REPLAY = "replay"


def parse_mixture(data: str) -> tuple[list[str], tuple[float, ...]]:
    """Return the names and weights in `data`, such as `wikipedia:0.5+zhihu`.

    The weight defaults to 1. An existing file or folder is one name, whatever plus signs and colons
    its path has, and so is a derived name with everything between its parentheses. Raises
    ValueError for an empty name, a weight that is not above 0, and as `parse_derived_name` does.
    """
    names = []
    weights = []
    parts = data.split("+")
    while parts:
        # The longest path that exists or derived name, with a weight or without one, or else one
        # part.
        for num_parts in range(len(parts), 0, -1):
            name, weight = _split_weight("+".join(parts[:num_parts]))
            if Path(name).exists() or parse_derived_name(name) is not None:
                break
        del parts[:num_parts]
        # The path "" is the working directory.
        if not name:
            raise ValueError(f"{data!r} has an empty part: write NAME, or NAME:0.5+OTHER")
        if not (math.isfinite(weight) and weight > 0):
            raise ValueError(f"the weight of {name} must be above 0")
        names.append(name)
        weights.append(weight)
    return names, tuple(weights)


def _split_weight(part: str) -> tuple[str, float]:
    """Return the name and the weight of one part of a mixture; a path that exists is a name."""
    name, _, weight_text = part.rpartition(":")
    if name and not Path(part).exists():
        # If what follows the colon is no number, the colon is a part of the name.
        with contextlib.suppress(ValueError):
            return name, float(weight_text)
    return part, 1.0


def _check_mixture(data: str) -> str:
    """Return `data`. Raises ValueError if it is not a mixture."""
    parse_mixture(data)
    return data


# The type of --data.
Mixture = Annotated[str, AfterValidator(_check_mixture)]
