"""Chat in the terminal or through pipes."""

import os
from pathlib import Path

from common.errors import UserError


def cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/babyllama`, or `~/.cache/babyllama` if the variable is unset.

    Raises UserError if there is no home folder, as for a user of a container without an entry.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG Base Directory Specification tells programs to ignore a relative path.
    if not base.is_absolute():
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            raise UserError("找不到主目录：请设置环境变量 HOME 或 XDG_CACHE_HOME") from None
    return base / "babyllama"
