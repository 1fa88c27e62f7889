"""What goes wrong, said in Chinese.

A mistake that chat finds itself is a `ChatError`. Code that chat shares with the other rooms speaks English: where it is
called, `in_chinese` says in Chinese what could not be done and what to do, and puts those words behind it. Some causes have
the same cure wherever they come up, and a line of their own: memory, and what the system does not permit.
"""

import contextlib
import errno
from collections.abc import Iterator

from common.errors import InsufficientMemoryError, UserError, describe_disk_error, errno_of

_OS_ERROR_MESSAGES = {
    errno.ENOENT: "没有这个文件或目录",
    errno.EACCES: "没有权限",
    errno.EPERM: "没有权限",
    errno.EISDIR: "是目录，不是文件",
    errno.ENOTDIR: "路径中间有一段是文件，不是目录",
    errno.EEXIST: "路径中间有一段是文件，不是目录",
    errno.ENOSPC: "磁盘满了",
    errno.EDQUOT: "磁盘配额用完了",
    errno.EROFS: "磁盘是只读的",
    errno.ENAMETOOLONG: "名字太长",
    errno.EIO: "输入输出出错",
}
_MEMORY_ADVICE = "内存或显存不够：把资料、问题说短一些，或加 --quantize int8，或换小一些的模型"
_PERMISSION_ADVICE = "没有权限：请改权限，或换一个地方"
_MAX_DETAIL_CHARACTERS = 500


class ChatError(UserError):
    """A mistake the user can mend, said in Chinese: one line with the cure."""


class ConsoleError(ChatError):
    """There is nowhere to read from or to write to any more: the chat cannot go on."""


def describe_os_error(error: OSError) -> str:
    """Why the system refuses a file; what is rare in the system's own words."""
    return _OS_ERROR_MESSAGES.get(error.errno or 0) or error.strerror or str(error)


@contextlib.contextmanager
def translate_errors(message: str, memory_message: str = _MEMORY_ADVICE) -> Iterator[None]:
    """Say what shared code has against something inside, a file or a disk that refuses, or memory that does not suffice.

    Each becomes a `ChatError` of one line and the detail: `memory_message` where memory is short, what helps where the system does
    not permit something, `message` otherwise. A `ChatError` stays as it is, and so does a fault of the program.
    """
    try:
        with translate_memory_errors(memory_message):
            yield
    except ChatError:
        raise
    except Exception as error:
        detail = str(error) if isinstance(error, UserError) else describe_disk_error(error)
        if detail is None:
            raise
        raise _build_error(
            _PERMISSION_ADVICE if _find_errno(error) in (errno.EACCES, errno.EPERM) else message,
            detail,
        ) from None


@contextlib.contextmanager
def translate_memory_errors(message: str = _MEMORY_ADVICE) -> Iterator[None]:
    """Make memory that does not suffice inside a `ChatError`: `message` and the detail."""
    try:
        yield
    except Exception as error:
        if not _is_memory_error(error):
            raise
        raise _build_error(message, str(error) or type(error).__name__) from None


def _build_error(message: str, detail: str) -> ChatError:
    detail = "; ".join(detail.splitlines())
    return ChatError(
        f"{message}；详情：{detail if len(detail) <= _MAX_DETAIL_CHARACTERS else detail[:_MAX_DETAIL_CHARACTERS] + '…'}"
    )


def _find_errno(error: BaseException) -> int | None:
    """The system's number of an error, also where shared code has put it into words of its own."""
    return errno_of(error) or (None if error.__context__ is None else errno_of(error.__context__))


def _is_memory_error(error: Exception) -> bool:
    if (
        isinstance(error, MemoryError | InsufficientMemoryError)
        or _find_errno(error) == errno.ENOMEM
    ):
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch  # what is said of a slip in the options need not wait for it

    # PyTorch has a kind of error for a GPU's memory alone; where a CPU's does not suffice it names its allocator.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
