"""Errors that the user can fix, disk errors, and the exit codes of commands."""

import contextlib
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NamedTuple

from common.threads import limit_spinning


class DiskError(NamedTuple):
    """Messages for an errno of a file or disk."""

    advice: str | None
    """Reason and remedy in English, or None if `strerror` of the system is clear enough."""
    chinese: str
    """Reason in Chinese, without the remedy."""


MAX_NAME_CHARACTERS = 200  # of a file name in a message

DISK_ERRORS = {
    errno.ENOENT: DiskError(None, "没有这个文件或目录"),
    errno.ENOSPC: DiskError("the disk is full: make room", "磁盘已满"),
    errno.EDQUOT: DiskError("the disk quota is used up: make room", "磁盘配额已用完"),
    errno.EFBIG: DiskError(
        "the file exceeds the size limit (ulimit -f, or the limit of the file system): "
        "raise the limit, or use another disk",
        "文件大小超出限制",
    ),
    errno.EROFS: DiskError(
        "is on a disk that is read-only: make it writable, or choose another path", "磁盘是只读的"
    ),
    errno.EACCES: DiskError("permission denied: change it, or choose another path", "没有权限"),
    errno.EPERM: DiskError("permission denied: change it, or choose another path", "没有权限"),
    errno.EIO: DiskError(
        "the disk reports an input/output error: check its health",
        "输入输出错误",
    ),
    errno.ENOTDIR: DiskError(
        "a part of this path is a file, not a folder: choose another path",
        "路径中间有一段是文件，不是目录",
    ),
    errno.EEXIST: DiskError(
        "exists already and is not a folder: choose another path", "路径中间有一段是文件，不是目录"
    ),
    errno.EISDIR: DiskError("is a folder, not a file: choose another path", "是目录，不是文件"),
    errno.ENAMETOOLONG: DiskError("the name is too long: choose another path", "文件名太长"),
}
# NumPy raises OSError without an errno for an incomplete write, with one of these messages.
_SHORT_WRITE_PATTERN = re.compile("Not enough free space|requested and .* written")


class UserError(Exception):
    """An error that the user can fix.

    The message is one line that names the file, line or key, and what to do about it.
    """


class InsufficientMemoryError(UserError):
    """The request needs more memory than the machine has."""


def errno_of(error: BaseException) -> int | None:
    """Return the `errno` of a system error raised by Python, NumPy or safetensors, or None."""
    if isinstance(error, OSError):
        if error.errno is None and _SHORT_WRITE_PATTERN.search(str(error)):
            return errno.ENOSPC
        return error.errno
    if type(error).__name__ != "SafetensorError":
        return None
    # safetensors is written in Rust and puts the errno in the message text.
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else None


def describe_disk_error(error: BaseException) -> str | None:
    """Return a one-line message for a disk or file error, which ends with the remedy.

    It begins with the name of the file, if the error has one. Returns None for an error that has
    neither a file name nor advice in `DISK_ERRORS`.
    """
    # 0 is not the number of any error.
    disk_error = DISK_ERRORS.get(errno_of(error) or 0)
    advice = disk_error.advice if disk_error else None
    # `filename` is an int if the operation was given a file descriptor.
    if not isinstance(error, OSError) or error.filename is None or isinstance(error.filename, int):
        return advice
    name = os.fsdecode(error.filename)
    if len(name) > MAX_NAME_CHARACTERS:
        name = name[:MAX_NAME_CHARACTERS] + "…"
    if advice is None:
        advice = f"{error.strerror}: check the path"
    return f"{name}: {advice}"


def run_main(main: Callable[[], int | None], *, decodes_batches: bool = False) -> None:
    """Run the `main` of a command and exit with the code that it returns; None is 0.

    PyTorch must not be imported before: its threads are told here how to wait for each other.
    `decodes_batches` says that most of the work is decoding many answers at a time; see
    `limit_spinning`.

    A UserError is printed to stderr, each of its lines after `error: `, and a disk error as one
    line; both exit with code 2. Ctrl-C exits with 130, and a reader that closes the pipe of the
    output with 141, as shells report a command that a signal ended: the command may not have done
    all of its work. Other exceptions are bugs and keep their traceback.
    """
    limit_spinning(decodes_batches=decodes_batches)
    _open_missing_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # File names may be invalid UTF-8, and the terminal may not support Chinese. Escape such
        # characters instead of stopping the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        _write_stderr("".join(f"error: {line}\n" for line in str(error).splitlines()))
        code = 2
    except KeyboardInterrupt as interrupt:
        _write_stderr("interrupted\n")
        # `train.stop_signals` raises it for SIGTERM, too, and names the signal.
        code = 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    except BrokenPipeError:
        # The reader of the output (`| head`) has closed the pipe, which needs no message. Python
        # flushes stdout again at exit; with the closed pipe the exit code would become 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except Exception as error:
        problem_and_remedy = describe_disk_error(error)
        if problem_and_remedy is None:
            raise
        _write_stderr(f"error: {problem_and_remedy}, then run the same command again\n")
        code = 2
    sys.exit(code)


def _write_stderr(lines: str) -> None:
    """Write to stderr."""
    # If the terminal is gone, only the exit code can report the error.
    with contextlib.suppress(OSError):
        sys.stderr.write(lines)
        sys.stderr.flush()


def _open_missing_standard_streams() -> None:
    """Open /dev/null for standard streams that the process was started without (`<&-`, `2>&-`).

    Otherwise the first files that Python opens get the descriptors 0 to 2, and the output of a
    library could end up in a checkpoint.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # os.open returns the lowest free descriptor, which is `number`. Python's descriptors
            # are not inheritable by default; a child process needs its standard streams, too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        # Python sets a stream to None if its descriptor was closed when the process started.
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
