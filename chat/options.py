"""Options of the chat commands, with help in Chinese and English and errors in Chinese."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from chat.errors import INVALID_OPTIONS, translate_errors
from chat.terminal.settings import SETTINGS
from common.options import Device, Options, parse_options
from model.decode.sampling import DEFAULT_MAX_NEW_TOKENS, Sampling

T = TypeVar("T", bound=Options)
DESCRIPTION = """与模型对话；对话中输入 /help 查看命令。
Talk to a model; /help in the chat lists its commands.
回答写到标准输出，其余写到标准错误，可以用于管道。
Answers go to stdout, everything else to stderr, so that pipes work."""
_SETTINGS_BY_NAME = {setting.name: setting for setting in SETTINGS}


def integer_between(minimum: int, maximum: int = 1 << 62) -> BeforeValidator:
    """Return a validator of integers in a closed range that raises ValueError in Chinese.

    `minimum` must not be negative: only decimal digits are accepted.
    """

    def check(value: Any) -> int:
        text = str(value)
        is_too_large = False
        number = -1  # below every minimum: not an integer
        try:
            if text.isdecimal():
                number = int(text)
                is_too_large = number > maximum
        except ValueError:  # int() refuses thousands of digits
            is_too_large = True
        if is_too_large or number < minimum:
            expected = f"不大于 {maximum}" if is_too_large else f"不小于 {minimum}"
            raise ValueError(f"应为{expected} 的整数，而不是 {text[:40]}")
        return number

    return BeforeValidator(check)


def _decode_argument(value: Any) -> Any:
    """Return an argument as text; bytes that are not UTF-8 are replaced, as in console input.

    Python decodes such bytes of the command line to lone surrogates, which no encoder accepts.
    """
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, str) else value


Count = Annotated[int, integer_between(1)]
Text = Annotated[str, BeforeValidator(_decode_argument)]


def _setting_field(name: str) -> Any:
    """Return the field of an option with the default and the help of the setting `name`."""
    setting = _SETTINGS_BY_NAME[name]
    return Field(setting.default, description=f"{setting.help_zh}\n{setting.help_en}")


class SamplingOptions(Options):
    """The fields of `Sampling` as options; `/help` lists the same settings in a conversation."""

    temperature: float = _setting_field("temperature")
    top_p: float = _setting_field("top_p")
    top_k: int = _setting_field("top_k")
    repetition_penalty: float = _setting_field("repetition_penalty")
    no_repeat_ngram: int = _setting_field("no_repeat_ngram")

    @field_validator(*_SETTINGS_BY_NAME, mode="before")
    @classmethod
    def _check_range(cls, value: Any, info: ValidationInfo) -> float:
        assert info.field_name is not None
        return _SETTINGS_BY_NAME[info.field_name].parse_value(str(value))

    def to_sampling(self) -> Sampling:
        """Return the sampling parameters."""
        return Sampling(**self.model_dump(include=set(_SETTINGS_BY_NAME)))


class ModelOptions(Options):
    """Options for the model and its device."""

    checkpoint: Path | None = Field(
        None,
        description="训练目录、其中某一步的检查点，或导出的模型；"
        "默认取 runs/ 中最新的，微调过的优先\n"
        "a run, one of its steps or an exported folder; default: the newest in runs/, "
        "fine-tuned ones first",
    )
    device: Device = Field(
        "auto",
        description="计算设备；auto：有显卡就用显卡\ndevice; auto: a GPU if there is one",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="计算精度；auto：较新的显卡用 bf16，较旧的用 fp16，CPU 用 fp32\n"
        "precision; auto: bf16 on GPUs that support it, fp16 on older ones, fp32 on a CPU",
    )
    quantize: Literal["int8"] | None = Field(
        None,
        description="将权重量化为 int8：内存约为 fp32 的四分之一，CPU 上快得多\n"
        "int8 weights: about a quarter of the memory of fp32, and much faster on a CPU",
    )
    kv_cache: Literal["bf16"] | None = Field(
        None,
        description="KV 缓存用 bf16：长对话和长资料的内存约为 fp32 的一半\n"
        "keys and values in bf16: half the memory of fp32 for long chats and references",
    )


class ChatOptions(SamplingOptions, ModelOptions):
    """Options of `python -m chat`."""

    reference: Text | None = Field(None, description="作为资料的文字\nreference text to talk about")
    reference_file: Path | None = Field(
        None, description="资料文件（UTF-8）\nfile with the reference text (UTF-8)"
    )
    wikipedia: Text | None = Field(
        None,
        description="把中文维基百科条目的引言作为资料\n"
        "use the introduction of a Chinese Wikipedia article as the reference",
    )
    index: Path | None = Field(
        None,
        description="资料库的目录（用 make index 建立）：每个问题自动从中查找资料，/资料 off 关闭\n"
        "folder of an index (make index): each question looks up its own passage; /reference off "
        "stops that",
    )
    max_new_tokens: Count = Field(
        DEFAULT_MAX_NEW_TOKENS,
        description="每个回答的最大词元数\nmaximum number of tokens of an answer",
    )
    seed: Annotated[int, integer_between(0)] = Field(
        0, description="随机种子；第 n 个回答用种子加 n-1\nrandom seed; answer n uses seed + n-1"
    )

    def find_conflicts(self) -> list[str]:
        """See `Options.find_conflicts`."""
        lines = super().find_conflicts()
        references = (self.reference, self.reference_file, self.wikipedia)
        if sum(reference is not None for reference in references) > 1:
            lines.append("--reference、--reference_file、--wikipedia 只能选一个")
        return lines


def parse_bilingual_options(
    schema: type[T], arguments: Sequence[str], *, name: str, description: str
) -> T:
    """Return the options of a chat command. Raises ChatError with all invalid ones in one line."""
    with translate_errors(INVALID_OPTIONS):
        return parse_options(schema, arguments, name=name, description=description)


def parse_chat_options(arguments: Sequence[str]) -> ChatOptions:
    """Return the options of `python -m chat`. Raises ChatError if any is invalid."""
    return parse_bilingual_options(ChatOptions, arguments, name="chat", description=DESCRIPTION)
