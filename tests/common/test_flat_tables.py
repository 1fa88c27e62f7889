"""Figures: nested results as dotted keys, numbers as text."""

import math
from typing import Any

import pytest

from common.flat_tables import flatten, format_value, parse_number


def test_flatten_keeps_intervals_and_empty_mappings_whole() -> None:
    """Prevents a score without its interval, and a key that disappears because it is empty."""
    interval = {"mean": 1.0, "low": 0.5, "high": 1.5}
    nested = {"a": {"b": 1, "c": {"d": [2]}}, "e": {}, "f": interval}
    assert flatten(nested) == {"a.b": 1, "a.c.d": [2], "e": {}, "f": interval}
    assert format_value(interval) == "1.0000 (0.5000 – 1.5000)"


@pytest.mark.parametrize(
    ("value", "number"), [(2, 2), (0.5, 0.5), ("-inf", -math.inf), (True, None), ("3", None)]
)
def test_only_numbers_of_the_log_are_numbers(value: Any, number: float | None) -> None:
    """Prevents flags and texts from being plotted, and infinities from being dropped."""
    assert parse_number(value) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0000"),
        (0.58432, "0.5843"),
        (-2.5, "-2.5000"),
        (1234567, "1,234,567"),
        (68293.56, "68,293.6"),
        (0.00001234, "1.234e-05"),
        (False, "no"),
        (math.inf, "inf"),
        ([0.5, 2], "[0.5000, 2]"),
        ([1, 2, 3, 4, 5], None),
        (["a"], None),
        ([], None),
        (None, None),
        ({}, None),
    ],
)
def test_numbers_are_formatted_readably(value: Any, text: str | None) -> None:
    """Prevents small rates rounded to 0.0000, and long lists in a cell."""
    assert format_value(value) == text
