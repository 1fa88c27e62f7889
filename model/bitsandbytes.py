"""Import bitsandbytes, an optional package: 4-bit weights and 8-bit optimizers."""

import importlib.util
import logging
import sys
from typing import Any

from common.errors import UserError


def require_bitsandbytes(option: str) -> None:
    """Raise UserError, beginning with the option that needs it, if bitsandbytes is missing."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"{option}: needs bitsandbytes, which is not installed: pip install -r "
            "requirements-qlora.txt"
        )


def load_functional() -> Any:
    """Return the module `bitsandbytes.functional`; the first call takes seconds.

    `Any`, because type checkers run without the package.
    """
    if "bitsandbytes" not in sys.modules:
        _import_without_downloads()
    import bitsandbytes.functional

    return bitsandbytes.functional


def _import_without_downloads() -> None:
    """Import bitsandbytes without the package `kernels`.

    On a CPU with bf16 instructions bitsandbytes would use that package to download a compiled
    kernel, which nothing here needs, and warn if it cannot.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    is_loaded = "kernels" in sys.modules
    if not is_loaded:
        sys.modules["kernels"] = None  # type: ignore[assignment]  # its import fails
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if not is_loaded:
            del sys.modules["kernels"]
