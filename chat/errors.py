"""What goes wrong, said in Chinese.

A mistake that chat finds itself is a `ChatError`. Code that chat shares with the other rooms speaks English: where it is
called, `in_chinese` says in Chinese what could not be done and what to do, and puts those words behind it.
"""

import contextlib
import errno
from collections.abc import Iterator

import torch

from common.errors import UserError, disk_problem

_REFUSALS = {
    errno.ENOENT: "没有这个文件或目录", errno.EACCES: "没有权限", errno.EPERM: "没有权限", errno.EISDIR: "是目录，不是文件",
    errno.ENOTDIR: "路径中间有一段是文件，不是目录", errno.EEXIST: "路径中间有一段是文件，不是目录", errno.ENOSPC: "磁盘满了",
    errno.EDQUOT: "磁盘配额用完了", errno.EROFS: "磁盘是只读的", errno.ENAMETOOLONG: "名字太长",
}
_LONGEST_DETAIL = 500


class ChatError(UserError):
    """A mistake the user can mend, said in Chinese: one line with the cure."""


def refusal(error: OSError) -> str:
    """Why the system refuses a file; what is rare in the system's own words."""
    return _REFUSALS.get(error.errno or 0) or error.strerror or str(error)


@contextlib.contextmanager
def in_chinese(line: str) -> Iterator[None]:
    """Say what shared code has against something inside, a file or a disk that refuses, or memory that does not suffice.

    Each becomes a `ChatError` of one line: `line` (of memory, what helps against that) and the detail. A `ChatError` stays
    as it is, and so does a fault of the program.
    """
    try:
        yield
    except ChatError:
        raise
    except Exception as error:
        if _is_memory(error):
            line = "内存或显存不够：把资料、问题说短一些，或加 --quantize int8，或换小一些的模型"
        detail = str(error) if isinstance(error, UserError) or _is_memory(error) else disk_problem(error)
        if detail is None:
            raise
        detail = "; ".join(detail.splitlines())
        cut = detail if len(detail) <= _LONGEST_DETAIL else detail[:_LONGEST_DETAIL] + "…"
        raise ChatError(f"{line}；详情：{cut or type(error).__name__}") from None


def _is_memory(error: Exception) -> bool:
    # PyTorch has a kind of error for a GPU's memory alone; where a CPU's does not suffice it names its allocator.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
