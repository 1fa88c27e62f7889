"""Where chat keeps what outlives it."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/babyllama`, or `~/.cache/babyllama` where the variable is unset (or relative, hence void)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "babyllama"
