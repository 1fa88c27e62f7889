"""What goes wrong, said in Chinese.

A mistake that chat finds itself is a `ChatError`. Code that chat shares with the other rooms speaks English: where it is
called, `in_chinese` says in Chinese what could not be done and what to do, and puts those words behind it. Some causes have
the same cure wherever they come up, and a line of their own: memory, and what the system does not permit.
"""

import contextlib
import errno
from collections.abc import Iterator

from common.errors import MemoryShortage, UserError, disk_problem, system_number

_REFUSALS = {
    errno.ENOENT: "没有这个文件或目录", errno.EACCES: "没有权限", errno.EPERM: "没有权限", errno.EISDIR: "是目录，不是文件",
    errno.ENOTDIR: "路径中间有一段是文件，不是目录", errno.EEXIST: "路径中间有一段是文件，不是目录", errno.ENOSPC: "磁盘满了",
    errno.EDQUOT: "磁盘配额用完了", errno.EROFS: "磁盘是只读的", errno.ENAMETOOLONG: "名字太长", errno.EIO: "输入输出出错",
}
_SHORTER = "内存或显存不够：把资料、问题说短一些，或加 --quantize int8，或换小一些的模型"
_FORBIDDEN = "没有权限：请改权限，或换一个地方"
_LONGEST_DETAIL = 500


class ChatError(UserError):
    """A mistake the user can mend, said in Chinese: one line with the cure."""


class ConsoleError(ChatError):
    """There is nowhere to read from or to write to any more: the chat cannot go on."""


def refusal(error: OSError) -> str:
    """Why the system refuses a file; what is rare in the system's own words."""
    return _REFUSALS.get(error.errno or 0) or error.strerror or str(error)


@contextlib.contextmanager
def in_chinese(line: str, memory: str = _SHORTER) -> Iterator[None]:
    """Say what shared code has against something inside, a file or a disk that refuses, or memory that does not suffice.

    Each becomes a `ChatError` of one line and the detail: `memory` where memory is short, what helps where the system does
    not permit something, `line` otherwise. A `ChatError` stays as it is, and so does a fault of the program.
    """
    try:
        with enough_memory(memory):
            yield
    except ChatError:
        raise
    except Exception as error:
        detail = str(error) if isinstance(error, UserError) else disk_problem(error)
        if detail is None:
            raise
        raise _with_detail(_FORBIDDEN if _number(error) in (errno.EACCES, errno.EPERM) else line, detail) from None


@contextlib.contextmanager
def enough_memory(line: str = _SHORTER) -> Iterator[None]:
    """Make memory that does not suffice inside a `ChatError`: `line` and the detail."""
    try:
        yield
    except Exception as error:
        if not _is_memory(error):
            raise
        raise _with_detail(line, str(error) or type(error).__name__) from None


def _with_detail(line: str, detail: str) -> ChatError:
    detail = "; ".join(detail.splitlines())
    return ChatError(f"{line}；详情：{detail if len(detail) <= _LONGEST_DETAIL else detail[:_LONGEST_DETAIL] + '…'}")


def _number(error: BaseException) -> int | None:
    """The system's number of an error, also where shared code has put it into words of its own."""
    return system_number(error) or (None if error.__context__ is None else system_number(error.__context__))


def _is_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | MemoryShortage) or _number(error) == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError):
        return False
    import torch  # what is said of a slip in the options need not wait for it

    # PyTorch has a kind of error for a GPU's memory alone; where a CPU's does not suffice it names its allocator.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
