"""Exclusive locks between processes, on the files of a folder that only one of them may change."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError

_RETRY_SECONDS = 0.05


@contextlib.contextmanager
def exclusive_lock(
    path: Path, busy_message: str | None = None, patience: float = 0
) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` while the block runs.

    The file is created if it is missing, and is not deleted. The operating system releases the lock
    when the process ends, even if it is killed. Without `busy_message`, wait for a process that
    holds the lock. Raises UserError with `busy_message` if another process holds the lock for more
    than `patience` seconds, and UserError on systems without file locks.
    """
    # Imported here so that commands that lock nothing start on native Windows, which has no fcntl.
    try:
        import fcntl
    except ImportError:
        raise UserError(f"{path} cannot be locked on this system: on Windows, use WSL") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    # Append mode creates the file, but never truncates one that holds data (a partial download).
    with path.open("ab") as file:
        operation = fcntl.LOCK_EX if busy_message is None else fcntl.LOCK_EX | fcntl.LOCK_NB
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(file, operation)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise UserError(str(busy_message)) from None
                time.sleep(_RETRY_SECONDS)
        # Closing the file at the end of the block releases the lock.
        yield
