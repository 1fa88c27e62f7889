"""The command line, in Chinese and English."""

import argparse
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from chat.errors import ChatError, translate_errors
from chat.terminal.settings import SETTINGS, Setting
from common.options import CommandParser
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, Sampling

DESCRIPTION = """与模型对话；对话中 /help 列出命令。
Talk to a model; /help lists the commands of a conversation.
回答写到标准输出，其余写到标准错误，可以接管道。
Answers go to stdout, everything else to stderr: pipes work."""


class ChatParser(CommandParser):
    """A parser whose help is in both languages, and whose mistakes are in Chinese."""

    def __init__(self, prog: str, description: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            add_help=False,
            formatter_class=argparse.RawTextHelpFormatter,
        )
        self.add_argument("-h", "--help", action="help", help="显示本说明\nshow this help")

    def error(self, message: str) -> NoReturn:
        """See `common.options.Parser.error`."""
        with translate_errors("命令行有误，--help 列出全部选项"):
            super().error(message)


def parse_chat_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options; exits on `--help`. ChatError for a value that is out of range."""
    parser = ChatParser("python -m chat", DESCRIPTION)
    add = parser.add_argument
    add_model_options(parser)
    reference_group = parser.add_mutually_exclusive_group()
    reference_group.add_argument(
        "--reference",
        type=_decode_argument,
        metavar="TEXT",
        help="要谈的资料\na reference text to talk about",
    )
    reference_group.add_argument(
        "--reference-file",
        type=Path,
        metavar="FILE",
        help="资料文件（UTF-8）\na file with the reference (UTF-8)",
    )
    reference_group.add_argument(
        "--wikipedia",
        type=_decode_argument,
        metavar="关键词",
        help="以中文维基百科条目的引言为资料\ntalk about the introduction of a Chinese Wikipedia article",
    )
    add_sampling_options(parser)
    add(
        "--max_new_tokens",
        type=bounded_int("--max_new_tokens", 1),
        default=DEFAULT_MAX_NEW_TOKENS,
        metavar="N",
        help=f"一个回答最多多少个词元（默认 {DEFAULT_MAX_NEW_TOKENS}）\n"
        f"most tokens of an answer (default {DEFAULT_MAX_NEW_TOKENS})",
    )
    add(
        "--seed",
        type=bounded_int("--seed", 0),
        default=0,
        metavar="N",
        help="随机种子；第 n 个回答用种子加 n-1（默认 0）\nseed; answer n uses it plus n-1 (default 0)",
    )
    return parser.parse_args(arguments)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which model speaks, and where it is computed."""
    add = parser.add_argument
    add(
        "--checkpoint",
        type=Path,
        metavar="DIR",
        help="训练目录、其中一步或导出的模型；默认取 runs/ 里最新的，微调过的优先\n"
        "a run, one of its steps or an exported folder; default: the newest in runs/, fine-tuned ones first",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="在哪里算；auto：有显卡用显卡\nwhere to compute; auto: a GPU where there is one",
    )
    add(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="精度；auto：新显卡 bf16，旧显卡 fp16，CPU fp32\n"
        "auto: bf16 on GPUs that compute in it, fp16 on older ones, fp32 on a CPU",
    )
    add(
        "--quantize",
        choices=("int8",),
        help="权重用 int8：内存约为 fp32 的四分之一，CPU 上快得多\n"
        "int8 weights: about a quarter of the memory of fp32, and much faster on a CPU",
    )


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    """An option for each of `SETTINGS`."""
    for setting in SETTINGS:
        parser.add_argument(
            f"--{setting.name}",
            type=_setting_type(setting),
            default=setting.default,
            metavar="N",
            help=f"{setting.help_zh}（默认 {setting.default:g}）\n{setting.help_en} (default {setting.default:g})",
        )


def sampling_from_options(options: argparse.Namespace) -> Sampling:
    """How to choose ids, as the options say."""
    return Sampling(**{field.name: getattr(options, field.name) for field in fields(Sampling)})


def _setting_type(setting: Setting) -> Callable[[str], float]:
    return lambda text: setting.parse_value(text, f"--{setting.name}")


def _decode_argument(argument: str) -> str:
    """A word of the command line as text: bytes in it that are no UTF-8 are replaced, as the console does with lines."""
    return os.fsencode(argument).decode("utf-8", "replace")


def bounded_int(name: str, minimum: int, maximum: int = 1 << 62) -> Callable[[str], int]:
    """A reader of the option `name`: an integer from `minimum` to `maximum`, ChatError for anything else."""

    def read(text: str) -> int:
        try:
            value = int(text) if text.isdecimal() else minimum - 1
        except ValueError:  # thousands of digits, which int() refuses
            value = maximum + 1
        if not minimum <= value <= maximum:
            expected = f"不大于 {maximum}" if value > maximum else f"不小于 {minimum}"
            raise ChatError(f"{name} {text[:40]}：要一个{expected} 的整数")
        return value

    return read
