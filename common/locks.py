"""Exclusive locks between processes, on the files of a folder that only one of them may change."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError


@contextlib.contextmanager
def exclusive_lock(path: Path, busy_message: str | None = None) -> Iterator[None]:
    """Hold the lock of the file `path`, which is created and stays, while the block runs.

    The lock ends with the process at the latest, however that ends. If another process holds it,
    raise UserError with `busy_message`, or wait if there is none.
    """
    try:
        import fcntl
    except ImportError:
        # Native Windows has no flock. Commands that only read work there; README.md points to WSL.
        raise UserError(f"{path} cannot be locked on this system: on Windows, use WSL") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        mode = fcntl.LOCK_EX if busy_message is None else fcntl.LOCK_EX | fcntl.LOCK_NB
        try:
            fcntl.flock(file, mode)
        except BlockingIOError:
            raise UserError(str(busy_message)) from None
        yield
