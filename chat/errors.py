"""Chinese error messages of the chat and the server.

The chat raises `ChatError` for errors that it detects itself. Shared code reports errors in
English: `translate_errors` puts a message of this catalog in front of them and keeps the English
text as details (详情), for those who look for the cause.
"""

import contextlib
import errno
from collections.abc import Iterator

from common.errors import (
    DISK_ERRORS,
    InsufficientMemoryError,
    UserError,
    describe_disk_error,
    errno_of,
)

COMMAND_FAILED = "运行失败：请按详情排查后重试"
LINE_FAILED = "处理失败：请按详情排查后重试"
INVALID_OPTIONS = "命令行有误：请用 --help 查看全部选项"
GPU_UNAVAILABLE = "没有可用的显卡：请改用 --device cpu"
CHECKPOINT_UNUSABLE = (
    "{path} 中没有可用的模型：请用 --checkpoint 指定训练目录、其中某一步的检查点，或导出的模型"
)
CHECKPOINT_UNREADABLE = (
    "无法加载 {folder} 中的模型：文件已损坏或互不匹配，请换一个模型，或重新训练、导出"
)
TOKENIZER_MISSING = (
    "{folder} 中没有分词器（tokenizer.model）：请把训练这个模型时用的 tokenizer.model 复制到那里，"
    "或用 --checkpoint 指定另一个模型"
)
# --quantize is not suggested here: it starts from the full weights, which have to fit first.
MODEL_TOO_LARGE = (
    "内存或显存装不下这个模型：请换小一些的模型，或关闭其他程序；显存不足时可改用 --device cpu"
)
OUT_OF_MEMORY = "内存或显存不足：请缩短资料或问题，或加上 --quantize int8，或换小一些的模型"
PERMISSION_DENIED = "没有权限：请修改权限，或换一个位置"

_MAX_DETAIL_CHARACTERS = 500


class ChatError(UserError):
    """An error that the user can fix; its message is one line in Chinese that says how."""


class ConsoleError(ChatError):
    """Input or output has failed for good, for example with the terminal; the chat has to end."""


def describe_os_error(error: OSError) -> str:
    """Return the reason for an OSError in Chinese, or for rare ones as the system words it."""
    known_error = DISK_ERRORS.get(error.errno or 0)
    if known_error is not None:
        return known_error.chinese
    return error.strerror or str(error)


@contextlib.contextmanager
def translate_errors(message: str, memory_message: str = OUT_OF_MEMORY) -> Iterator[None]:
    """Turn errors raised inside the block into a ChatError of one line with details.

    The line begins with `memory_message` if memory ran out, with `PERMISSION_DENIED` if the system
    refused access, and with `message` for other UserErrors and disk errors. A ChatError passes
    unchanged. So does any other exception, which is a bug and keeps its traceback.
    """
    try:
        yield
    except ChatError:
        raise
    except Exception as error:
        if _is_out_of_memory(error):
            raise _chat_error(memory_message, str(error) or type(error).__name__) from None
        details = str(error) if isinstance(error, UserError) else describe_disk_error(error)
        if details is None:  # neither a UserError nor a disk error: a bug
            raise
        if _find_errno(error) in (errno.EACCES, errno.EPERM):
            message = PERMISSION_DENIED
        raise _chat_error(message, details) from None


def _chat_error(message: str, details: str) -> ChatError:
    """Return a ChatError of one line, its details cut to _MAX_DETAIL_CHARACTERS."""
    details = "; ".join(details.splitlines())
    if len(details) > _MAX_DETAIL_CHARACTERS:
        details = details[:_MAX_DETAIL_CHARACTERS] + "…"
    return ChatError(f"{message}；详情：{details}")


def _find_errno(error: BaseException) -> int | None:
    """Return the errno of `error`, or of the error that was handled when it was raised."""
    if error.__context__ is None:
        return errno_of(error)
    return errno_of(error) or errno_of(error.__context__)


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether `error` says that memory ran out, on the CPU or the GPU."""
    if isinstance(error, MemoryError | InsufficientMemoryError):
        return True
    if _find_errno(error) == errno.ENOMEM:
        return True
    if not isinstance(error, RuntimeError):
        return False
    # Imported here so that an invalid option is reported without loading PyTorch.
    import torch

    # PyTorch has an exception for GPU memory only; on a CPU the message names the allocator.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
