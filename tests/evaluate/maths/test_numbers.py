"""The numbers in a text."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluate.maths.numbers import find_numbers, last_number


def chinese_numeral(number: int) -> str:
    """Return the numeral of a number below 10 ** 12, written by the rules of grammar."""
    digits = "零一二三四五六七八九"
    if number == 0:
        return "零"

    def section(value: int, pad: bool) -> str:
        text, zero = "", pad
        for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
            digit, value = divmod(value, unit)
            if digit:
                text += ("零" if zero and (text or pad) else "") + digits[digit] + name
                zero = False
            elif text:
                zero = True
        return text

    text = ""
    for unit, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        part, number = divmod(number, unit)
        if part:
            text += section(part, bool(text) and part < 1000) + name
    return text


@pytest.mark.slow
@given(st.integers(0, 10**12 - 1))
def test_numerals_have_the_value_that_they_are_written_for(number: int) -> None:
    """Prevents a wrong place, above all around zeros, 万 and 亿."""
    numeral = chinese_numeral(number)
    assert last_number(f"一共{numeral}个") == number, numeral
    assert last_number(f"负{numeral}") == -number


@pytest.mark.slow
@given(st.integers(-(10**15), 10**15), st.integers(0, 4))
def test_digits_have_the_value_that_python_writes(number: int, places: int) -> None:
    """Prevents wrong thousands separators, decimals and full-width digits."""
    value = Fraction(number, 10**places)
    for text in (f"{number}", f"{number:,}", f"{number:.2f}"):
        assert find_numbers(f"答案是{text}。") == [number]
    text = f"{abs(number) // 10**places}.{abs(number) % 10**places:0{places + 1}d}"
    wide = f"{number}".translate(str.maketrans("0123456789-", "０１２３４５６７８９－"))
    assert find_numbers(f"得{wide}") == [number]
    assert last_number(f"{float(value):.6f}") == Fraction(f"{float(value):.6f}")
    assert last_number(text) is not None


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("8-5=3", [8, 5, 3]),
        ("8 - 5", [8, 5]),
        ("(8)-5", [8, 5]),
        ("3-5=-2", [3, 5, -2]),
        ("-5", [-5]),
        ("答案是−5。", [-5]),
        ("零下负五度", [0, -5]),
        ("3/4", [Fraction(3, 4)]),
        ("四分之三", [Fraction(3, 4)]),
        ("3/0", []),
        ("25%", [25]),
        ("百分之二十五", [25]),
        ("1,234,567元", [1234567]),
        ("1,2,3", [1, 2, 3]),
        ("12,3456", [12, 3456]),
        ("3.5.", [Fraction(7, 2)]),
        ("1.5万", [15000]),
        ("3千万", [30000000]),
        ("5千克", [5]),
        ("三千克", [3]),
        ("三千个", [3000]),
        ("两千三", [2300]),
        ("一万五", [15000]),
        ("一百零五", [105]),
        ("十", [10]),
        ("二〇二四年", [2024]),
        ("一共有多少个？一样多", []),
        ("他们一起有5个，统一", [5]),
        ("三十一样", [31]),
        ("三分之一", [Fraction(1, 3)]),
        ("没有", []),
        ("", []),
        ("1" * 5000, []),
        ("5" + "，" + "9" * 4000, [5]),
    ],
)
def test_numbers_in_a_text(text: str, numbers: list[Fraction]) -> None:
    """Prevents a subtraction from being negative, 一共 from being one, and a crash."""
    assert find_numbers(text) == numbers
