"""The one check that an export overwrites nothing but an earlier export."""

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError


def check_replaceable(out: Path, expected: str, is_earlier_export: Callable[[Path], bool]) -> None:
    """Check that `out` does not exist, or is an earlier export, called `expected` in the message.

    Raises UserError if it is something else.
    """
    if out.exists() and not is_earlier_export(out):
        raise UserError(f"{out} exists and is not {expected}: choose another --out")
