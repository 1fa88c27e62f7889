"""Chat in the terminal or through pipes."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/babyllama`, or `~/.cache/babyllama` if the variable is unset."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG Base Directory Specification tells programs to ignore a relative path.
    if not base.is_absolute():
        base = Path.home() / ".cache"
    return base / "babyllama"
