"""Progress bars: redrawn on a terminal, printed every ten seconds in a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    description: str, total: float | None = None, unit: str = "it", **options: Any
) -> "tqdm[Any]":
    """Return a tqdm bar on stderr.

    If stderr is not a terminal, the bar prints a line every ten seconds instead of redrawing.
    """
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        desc=description,
        unit=unit,
        unit_scale=True,
        dynamic_ncols=live,
        file=sys.stderr,
        mininterval=0.2 if live else 10.0,
        maxinterval=10.0,
        leave=True,
        **options,
    )
