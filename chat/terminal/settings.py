"""The sampling settings, which are both options of the command line and commands of the chat."""

from dataclasses import dataclass, replace
from typing import Any

from model.decode.sampling import DEFAULT_SAMPLING, Sampling


@dataclass(frozen=True)
class Setting:
    """A field of `Sampling` with its range, its slash command and its help."""

    name: str
    command_names: tuple[str, ...]  # without the slash
    minimum: float
    maximum: float
    help_zh: str
    help_en: str

    @property
    def default(self) -> float:
        """Return the default value, whose type, int or float, is that of all values."""
        return getattr(DEFAULT_SAMPLING, self.name)

    def parse_value(self, text: str) -> float:
        """Return `text` as a number of the same type as the default.

        Raises ValueError, in Chinese, for text that is not a number in the range.
        """
        is_integer = isinstance(self.default, int)
        try:
            value = int(text) if is_integer else float(text)
        except ValueError:
            value = float("nan")
        # A comparison with NaN is false, so this rejects text that is not a number, too.
        if not self.minimum <= value <= self.maximum:
            noun = "整数" if is_integer else "数"
            raise ValueError(
                f"应为 {self.minimum:g} 到 {self.maximum:g} 之间的{noun}，而不是 {text[:40]}"
            )
        return value


SETTINGS = (
    Setting(
        "temperature",
        ("temperature", "温度"),
        0,
        5,
        "温度：越高越随机，0 表示每次取概率最高的词元",
        "temperature: higher is more random, 0 always takes the likeliest token",
    ),
    Setting(
        "top_p",
        ("top_p", "累积概率"),
        0,
        1,
        "只从概率最高、累积概率达到该值的词元中选，1 表示不限",
        "sample from the likeliest tokens whose probabilities add up to this, 1: no limit",
    ),
    Setting(
        "top_k",
        ("top_k", "候选数"),
        0,
        100_000,
        "候选词元数，只从概率最高的这些词元中选，0 表示不限",
        "sample from this many of the likeliest tokens, 0: no limit",
    ),
    Setting(
        "repetition_penalty",
        ("penalty", "惩罚"),
        1,
        10,
        "重复惩罚，只针对回答中已出现的词元，1 表示不惩罚",
        "repetition penalty on tokens that the answer has already, 1: none",
    ),
    Setting(
        "no_repeat_ngram",
        ("no_repeat_ngram", "不重复"),
        0,
        1000,
        "回答中不得重复的片段长度（词元数），0 表示不限",
        "no run of this many tokens occurs twice in an answer, 0: no limit",
    ),
)


def replace_setting(sampling: Sampling, setting: Setting, value: float) -> Sampling:
    """Return `sampling` with one setting changed."""
    changes: dict[str, Any] = {setting.name: value}
    return replace(sampling, **changes)


def format_settings(sampling: Sampling) -> str:
    """Return all settings on one line."""
    return "，".join(f"{setting.name} {getattr(sampling, setting.name):g}" for setting in SETTINGS)
