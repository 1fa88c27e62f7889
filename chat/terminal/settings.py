"""The numbers that steer an answer: options of the command line and commands of a conversation alike."""

from dataclasses import dataclass, replace
from typing import Any

from model.decode.sampling import Sampling

# An answer of a loop of any length ends after eight ids; a name of rare characters, three bytes each, may come twice.
DEFAULT_SAMPLING = Sampling(temperature=0.7, top_p=0.9, repetition_penalty=1.1, no_repeat_ngram=8)


@dataclass(frozen=True)
class Setting:
    """A field of `Sampling`, what it is called, and what it may be."""

    name: str
    command_names: tuple[str, ...]
    minimum: float
    maximum: float
    help_zh: str
    help_en: str

    @property
    def default(self) -> float:
        """Its value where nobody says another."""
        return getattr(DEFAULT_SAMPLING, self.name)

    def parse_value(self, text: str) -> float:
        """Return the value that `text` names, an int if the default is one.

        Raises ValueError, in Chinese, for text that is not a number in the range.
        """
        is_integer = isinstance(self.default, int)
        try:
            value = int(text) if is_integer else float(text)
        except ValueError:
            value = float("nan")
        if not self.minimum <= value <= self.maximum:
            noun = "整数" if is_integer else "数"
            raise ValueError(
                f"{text[:40]}：要一个 {self.minimum:g} 到 {self.maximum:g} 之间的{noun}"
            )
        return value


SETTINGS = (
    Setting(
        "temperature",
        ("temperature", "温度"),
        0,
        5,
        "温度：越高越多变，0 为每次取最可能的词",
        "temperature: higher varies more, 0 takes the likeliest",
    ),
    Setting(
        "top_p",
        ("top_p", "累积概率"),
        0,
        1,
        "只从累积概率到此为止的词里选，1 为不限",
        "draw only from the likeliest that together hold this probability, 1: no limit",
    ),
    Setting(
        "top_k",
        ("top_k", "候选数"),
        0,
        100_000,
        "只从最可能的这么多个词里选，0 为不限",
        "draw only from so many of the likeliest, 0: no limit",
    ),
    Setting(
        "repetition_penalty",
        ("penalty", "惩罚"),
        1,
        10,
        "重复惩罚，只算回答里说过的词，1 为不罚",
        "repetition penalty on what the answer has said, 1: none",
    ),
    Setting(
        "no_repeat_ngram",
        ("no_repeat_ngram", "不重复"),
        0,
        1000,
        "回答里这么多个词元连在一起不说第二遍，0 为不限",
        "so many tokens in a row are never said twice in an answer, 0: no limit",
    ),
)


def replace_setting(sampling: Sampling, setting: Setting, value: float) -> Sampling:
    """The same sampling but for one setting."""
    fields: dict[str, Any] = {setting.name: value}
    return replace(sampling, **fields)


def format_settings(sampling: Sampling) -> str:
    """All settings on one line."""
    return "，".join(f"{setting.name} {getattr(sampling, setting.name):g}" for setting in SETTINGS)
