"""The one check that an export overwrites nothing but an earlier export."""

from collections.abc import Callable
from pathlib import Path

from common.errors import UserError


def check_replaceable(out: Path, expected: str, is_earlier_export: Callable[[Path], bool]) -> None:
    """Raise UserError if `out` exists and is not an earlier export.

    `expected` is the phrase for an earlier export in the message, such as "a GGUF file".
    """
    if out.exists() and not is_earlier_export(out):
        raise UserError(f"{out} exists and is not {expected}: choose another --out")
