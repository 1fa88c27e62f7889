"""One kind of error for what the user can mend, and the one place that turns it into an exit code."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple


class DiskError(NamedTuple):
    """Texts for an errno of a file or disk."""

    advice: str | None  # English: the reason and the remedy; None: the system's own text will do
    chinese: str  # Chinese: the reason alone


DISK_ERRORS = {
    errno.ENOENT: DiskError(None, "没有这个文件或目录"),
    errno.ENOSPC: DiskError("the disk is full: make room", "磁盘已满"),
    errno.EDQUOT: DiskError("the disk quota is used up: make room", "磁盘配额已用完"),
    errno.EFBIG: DiskError(
        "files may not grow so large here (ulimit -f, or the file system's limit): "
        "raise it, or use another disk",
        "文件大小超出限制",
    ),
    errno.EROFS: DiskError(
        "is on a disk that is read-only: make it writable, or name another place", "磁盘是只读的"
    ),
    errno.EACCES: DiskError("permission denied: change it, or name another place", "没有权限"),
    errno.EPERM: DiskError("permission denied: change it, or name another place", "没有权限"),
    errno.EIO: DiskError(
        "the disk reports an error of its own (input/output error): look at its health",
        "输入输出错误",
    ),
    errno.ENOTDIR: DiskError(
        "a part of this path is a file and no folder: name another place",
        "路径中间有一段是文件，不是目录",
    ),
    errno.EEXIST: DiskError(
        "is there already and no folder: name another place", "路径中间有一段是文件，不是目录"
    ),
    errno.EISDIR: DiskError("is a folder and no file: name another place", "是目录，不是文件"),
    errno.ENAMETOOLONG: DiskError("the name is too long: name another place", "文件名太长"),
}
# NumPy's words for a write that came to a halt.
_SHORT_WRITE_PATTERN = re.compile("Not enough free space|requested and .* written")


class UserError(Exception):
    """A mistake the user can mend: one line that names the file, line or key, and the cure."""


class InsufficientMemoryError(UserError):
    """What is wanted is more than the machine's memory holds."""


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error (`errno`); None if it is not the system's."""
    if isinstance(error, OSError):
        return (
            errno.ENOSPC
            if error.errno is None and _SHORT_WRITE_PATTERN.search(str(error))
            else error.errno
        )
    # The library of safetensors is no Python: it hands on the number in words.
    match = (
        re.search(r"\(os error (\d+)\)", str(error))
        if type(error).__name__ == "SafetensorError"
        else None
    )
    return int(match[1]) if match else None


def describe_disk_error(error: BaseException) -> str | None:
    """What a disk or folder refused, and the cure, in one line; None if `error` is about something else."""
    known_error = DISK_ERRORS.get(errno_of(error) or 0)
    advice = known_error.advice if known_error else None
    if not isinstance(error, OSError) or error.filename is None or isinstance(error.filename, int):
        return advice
    name = os.fsdecode(error.filename)
    return f"{name if len(name) <= 200 else name[:200] + '…'}: {advice or f'{error.strerror}: look at the path'}"


def run_main(main: Callable[[], int | None]) -> None:
    """Run a command's `main` and leave the process with its exit code.

    A `UserError` becomes its message on stderr and exit code 2, and so does a disk that is full or refuses a file, by its
    name; Ctrl-C becomes 130. Anything else is a fault of the program and keeps its traceback.
    """
    _open_missing_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may be bytes that are no text, a terminal may know no Chinese: shown as escapes, no end to the work.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        _write_stderr("".join(f"error: {line}\n" for line in str(error).splitlines()))
        code = 2
    except KeyboardInterrupt:
        _write_stderr("interrupted\n")
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; it has all it wanted.
        sys.stderr.close()
        code = 0
    except Exception as error:
        problem = describe_disk_error(error)
        if problem is None:
            raise
        _write_stderr(f"error: {problem}, then run the same command again\n")
        code = 2
    sys.exit(code)


def _write_stderr(lines: str) -> None:
    """Say why a command ends. Where the terminal has gone there is nobody to tell, and the exit code has to do."""
    with contextlib.suppress(OSError):
        sys.stderr.write(lines)
        sys.stderr.flush()


def _open_missing_standard_streams() -> None:
    """Give a process that was started without some of them (`<&-`, `2>&-`) empty ones.

    Python has None in their places, and the first files that it opens get their numbers: what a library then says of its
    own accord would go into a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
