"""Draw the values of reading passages: names of invented characters, numbers, times and words.

Values cannot be guessed: names are strings of common characters, each of which occurs about equally
often, and times, colors and other words come from lists that no passage prefers.
"""

import random
from collections.abc import Callable

from assets.sample_generator.grammar import TEXT_FOLDER, read_sections
from data.tokenizer.train import common_chinese_text

DIGITS = "零一二三四五六七八九"
HOUR_PARTS = ("", "早上", "上午", "中午", "下午", "傍晚", "晚上", "清晨")
WEEKDAYS = "一二三四五六日"


def chinese_number(number: int) -> str:
    """Return a number from 0 to 9,999 in Chinese numerals."""
    if number < 10:
        return DIGITS[number]
    text, has_gap = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            text += ("零" if has_gap else "") + DIGITS[digit] + name
            has_gap = False
        elif text:
            has_gap = True
    # 十五, not 一十五, but 一百一十五.
    return text.removeprefix("一") if 10 <= number < 20 else text


class ValueGenerator:
    """Draw values by kind, such as 人 for a person."""

    def __init__(self, rng: random.Random, is_allowed: Callable[[str], bool]) -> None:
        """Read the word lists of `text/values.txt`.

        `is_allowed(stem)` returns whether two random characters may stand side by side in a name:
        held-out passages leave out what occurs in the rest of the sample.
        """
        self.rng, self.is_allowed = rng, is_allowed
        sections = read_sections(TEXT_FOLDER / "values.txt")
        self.words = {name: " ".join(lines).split() for name, lines in sections.items()}
        self.common_characters = [
            character for character in common_chinese_text() if "\u4e00" <= character <= "\u9fff"
        ]
        # A shuffled deck of the common characters, of which a name takes the last: all occur
        # about equally often.
        self.deck: list[str] = []
        self.draw_by_kind: dict[str, Callable[[], str]] = {
            "人": self._person,
            "地": lambda: self._named("地尾", bare=0.15),
            "街": lambda: self._named("街尾"),
            "馆": lambda: self._named("馆尾"),
            "店": lambda: self._named("店尾"),
            "山": lambda: self._named("山尾"),
            "河": lambda: self._named("河尾"),
            "名": self._title,
            "物": lambda: self._word_or_named("物", "物尾"),
            "数": lambda: self._number(self.rng.choice((99, 999, 9999))),
            "个": lambda: self._count(20, chinese=0.7),
            "价": self._price,
            "长": self._length,
            "久": self._duration,
            "点": self._time,
            "日": self._day,
            "年": self._year,
        }
        for kind in "食兽草职料色月向因法科病戏句":
            self.draw_by_kind[kind] = lambda kind=kind: self.rng.choice(self.words[kind])

    def draw(self, kind: str) -> str:
        """Return a value of a kind. Raises KeyError for an unknown kind."""
        return self.draw_by_kind[kind]()

    def character(self) -> str:
        """Return a common character."""
        if not self.deck:
            self.deck = self.rng.sample(self.common_characters, len(self.common_characters))
        return self.deck.pop()

    def stem(self, length: int) -> str:
        """Return some different common characters, whose neighbours may stand side by side."""
        while True:
            stem = "".join(self.character() for _ in range(length))
            pairs = map("".join, zip(stem, stem[1:], strict=False))
            if len(set(stem)) == length and all(map(self.is_allowed, pairs)):
                return stem

    def _person(self) -> str:
        family_name = self.rng.choice(self.words["姓"])
        form = self.rng.random()
        if form < 0.15:
            return family_name + self.rng.choice(self.words["称呼"])
        if form < 0.28:
            return self.rng.choice(self.words["昵称"]) + self.stem(1)
        if form < 0.33:
            # A transcribed foreign name.
            return self.stem(self.rng.choice((3, 4)))
        return family_name + self.stem(2 if form < 0.85 else 1)

    def _named(self, endings: str, bare: float = 0.0) -> str:
        if self.rng.random() < bare:
            return self.stem(self.rng.choice((2, 3)))
        return self.stem(self.rng.choice((1, 2, 2, 2))) + self.rng.choice(self.words[endings])

    def _title(self) -> str:
        return self.stem(self.rng.choice((2, 3, 4))) + self.rng.choice(
            ("", "", "", "号", "集", "记", "之歌", "计划", "传", "图")
        )

    def _word_or_named(self, words: str, endings: str) -> str:
        if self.rng.random() < 0.6:
            return self.rng.choice(self.words[words])
        return self.stem(self.rng.choice((1, 2))) + self.rng.choice(self.words[endings])

    def _number(self, limit: int, chinese: float = 0.6) -> str:
        number = self.rng.randint(2, limit)
        return chinese_number(number) if self.rng.random() < chinese else str(number)

    def _count(self, limit: int, chinese: float = 0.6) -> str:
        """Return a number in front of a measure word: 两, not 二."""
        number = self._number(limit, chinese)
        return "两" if number == "二" else number

    def _price(self) -> str:
        unit = self.rng.choice(("元", "元", "块", "块钱"))
        text = self._count(self.rng.choice((20, 100, 1000)))
        if unit == "块" and self.rng.random() < 0.5:
            digit = self.rng.randint(1, 9)
            return text + unit + (str(digit) if text.isdigit() else DIGITS[digit])
        return text + unit

    def _length(self) -> str:
        unit = self.rng.choice(
            ("米", "公里", "里", "厘米", "尺", "斤", "公斤", "吨", "克", "丈", "亩", "平方米")
        )
        return self._count(self.rng.choice((10, 100, 900))) + unit

    def _duration(self) -> str:
        unit = self.rng.choice(("分钟", "个小时", "小时", "天", "个月", "年", "个星期", "秒", "周"))
        if self.rng.random() < 0.1:
            return self.rng.choice(("半个小时", "半年", "一个半小时", "半天", "大半年", "十几天"))
        return self._count(self.rng.choice((10, 10, 60))) + unit

    def _time(self) -> str:
        hour = self.rng.randint(1, 12)
        is_chinese = self.rng.random() < 0.75
        if not is_chinese and self.rng.random() < 0.4:
            return f"{self.rng.randint(0, 23)}:{self.rng.randint(0, 59):02d}"
        minutes = ("", "", "", "半", "一刻", "二十分", "十分", "四十五分", "零五分")
        text = (chinese_number(hour) if is_chinese else str(hour)) + "点"
        return self.rng.choice(HOUR_PARTS) + text + self.rng.choice(minutes)

    def _day(self) -> str:
        form = self.rng.random()
        if form < 0.5:
            return self.rng.choice(("周", "周", "星期", "下周", "本周")) + self.rng.choice(WEEKDAYS)
        month, day = self.rng.randint(1, 12), self.rng.randint(1, 28)
        ending = self.rng.choice("日日号")
        if form < 0.8:
            return f"{chinese_number(month)}月{chinese_number(day)}{ending}"
        return f"{month}月{day}{ending}"

    def _year(self) -> str:
        year = self.rng.randint(1700, 2029)
        form = self.rng.random()
        if form < 0.5:
            return f"{year}年"
        digits = "".join(DIGITS[int(digit)] for digit in str(year))
        return (digits.replace("零", "〇") if form < 0.8 else digits) + "年"
