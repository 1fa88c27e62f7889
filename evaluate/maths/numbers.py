"""Find the numbers in a text, in digits or in Chinese numerals, as exact fractions.

- Digits may be full-width, with thousands separators (1,234), decimals, and a unit of 百, 千, 万 or
  亿 after them (1.5万).
- 3/4 and 四分之三 are fractions. A percent sign is ignored: 25% is 25, as gold answers have it.
- A minus sign, or 负, makes a number negative. After a digit or a closing bracket it is a
  subtraction: 8-5 has the numbers 8 and 5.
- 二十三, 一百零五, 两千三 (2,300), 三万五千, 二〇二四 are numerals. The 一 of words such as 一共 is
  none, nor is the 千 of 千克 and 千米.
"""

import re
from fractions import Fraction

# Longer ones are not numbers: Python refuses to parse them from 4,300 digits on.
_MAX_CHARACTERS = 400
_HALF_WIDTH = str.maketrans("０１２３４５６７８９．／－−", "0123456789./--")
_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_SMALL_UNITS = {"十": 10, "百": 100, "千": 1000}
_LARGE_UNITS = {"万": 10**4, "亿": 10**8}
_UNITS = _SMALL_UNITS | _LARGE_UNITS
# Not in a numeral: 三十一样 is 31.
_WORDS_WITH_ONE = re.compile(
    "(?<![零〇一二两三四五六七八九十百千万亿])一[共样起定些般直切边旦半下]|[统唯同]一"
)
# One digit at least, or 十; 千 of kilogram and kilometer is no unit of the number.
_NUMERAL = "(?:千(?![克米瓦卡])|[零〇一二两三四五六七八九十百万亿])*[零〇一二两三四五六七八九十]"
_NUMERAL += "(?:千(?![克米瓦卡])|[百万亿])*"
_NUMBER = re.compile(
    r"(?P<sign>-|负)?\s*(?:"
    r"(?P<digits>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?)"
    r"(?:/(?P<denominator>[0-9]+)|(?P<unit>(?:千(?![克米瓦卡])|[百万亿])+))?"
    rf"|(?P<numeral>{_NUMERAL})(?:分之(?P<numerator>{_NUMERAL}))?)"
)


def last_number(text: str) -> Fraction | None:
    """Return the last number in a text, None without any; see the module for what is a number."""
    numbers = find_numbers(text)
    return numbers[-1] if numbers else None


def find_numbers(text: str) -> list[Fraction]:
    """Return the numbers in a text in order; see the module for what is a number."""
    text = _WORDS_WITH_ONE.sub("□", text.translate(_HALF_WIDTH))
    numbers = []
    for match in _NUMBER.finditer(text):
        value = _parse_number(match)
        if value is None:
            continue
        before = text[: match.start()].rstrip()
        is_subtraction = match["sign"] == "-" and before[-1:] in tuple("0123456789)）%％")
        numbers.append(-value if match["sign"] and not (is_subtraction and before) else value)
    return numbers


def _parse_number(match: re.Match[str]) -> Fraction | None:
    """Return the value of a match of `_NUMBER` without its sign; None if it is not a number."""
    if len(match[0]) > _MAX_CHARACTERS:
        return None
    if match["digits"] is None:
        value = Fraction(_parse_numeral(match["numeral"]))
        if match["numerator"] is None:
            return value
        return _parse_numeral(match["numerator"]) / value if value else None
    value = Fraction(match["digits"].replace(",", ""))
    if match["denominator"] is not None:
        denominator = int(match["denominator"])
        return value / denominator if denominator else None
    for unit in match["unit"] or "":
        value *= _UNITS[unit]
    return value


def _parse_numeral(text: str) -> int:
    """Return the value of a Chinese numeral; one without units has a digit for each place."""
    if not any(unit in text for unit in _UNITS):
        return int("".join(str(_DIGITS[char]) for char in text))
    # What is before the last 万 or 亿, what is after it, and the digit that waits for its unit.
    total = section = digit = 0
    for char in text:
        if char in _DIGITS:
            digit = _DIGITS[char]
        elif char in _SMALL_UNITS:
            section += (digit or 1) * _SMALL_UNITS[char]
            digit = 0
        else:
            section += digit
            digit = 0
            unit = _LARGE_UNITS[char]
            # 三万亿 is 三万 times 亿, but 一亿三万 is a sum.
            total = (total + section) * unit if total < unit else total + section * unit
            section = 0
    # 两千三 leaves out the unit after its last digit, which is the next smaller one.
    if digit and text[-2] in _UNITS and text[-2] != "十":
        digit *= _UNITS[text[-2]] // 10
    return total + section + digit
