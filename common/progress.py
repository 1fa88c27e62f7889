"""Progress bars: redrawn on a terminal, printed every ten seconds in a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    description: str, total: float | None = None, unit: str = "it", **tqdm_options: Any
) -> "tqdm[Any]":
    """Return a tqdm bar on stderr; `total` counts `unit`, and is None if it is unknown.

    If stderr is not a terminal, the bar prints a line every ten seconds instead of redrawing.
    """
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=is_terminal,
        file=sys.stderr,
        mininterval=0.2 if is_terminal else 10.0,  # seconds
        maxinterval=10.0,
        leave=True,
        **tqdm_options,
    )
