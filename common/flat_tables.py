"""Results files and option files as flat tables: dotted keys, numbers as text."""

import math
from typing import Any

# A figure with its confidence interval is an object with exactly these keys: the mean of a score,
# or the fraction of a number of questions.
MEAN_KEYS = {"mean", "low", "high"}
RATE_KEYS = {"rate", "low", "high", "questions"}
# Longer lists of numbers are not shown as figures.
MAX_LIST_LENGTH = 4


def flatten(value: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as a flat one: {"a": {"b": 1}} becomes {"a.b": 1}.

    Empty mappings and figures with a confidence interval (MEAN_KEYS, RATE_KEYS) are values, not
    levels. `prefix` is put before all keys.
    """
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, dict) and item and item.keys() not in (MEAN_KEYS, RATE_KEYS):
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def parse_number(value: Any) -> int | float | None:
    """Return a JSON value as a number, or None if it is not one."""
    # bool is a subclass of int.
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    # JSON has no NaN and infinities; `metrics.jsonl` holds them as strings.
    return float(value) if value in ("nan", "inf", "-inf") else None


def parse_interval(value: Any) -> tuple[float, float, float] | None:
    """Return mean (or rate), low and high of a figure with its interval, or None of other values.

    None also if one of the three is not a finite number.
    """
    if not isinstance(value, dict) or value.keys() not in (MEAN_KEYS, RATE_KEYS):
        return None
    middle_key = "mean" if "mean" in value else "rate"
    numbers = []
    for key in (middle_key, "low", "high"):
        number = parse_number(value[key])
        if number is None or not math.isfinite(number):
            return None
        numbers.append(float(number))
    middle, low, high = numbers
    return middle, low, high


def format_value(value: Any) -> str | None:
    """Return a figure of a report as text, or None if the value is not a figure.

    Figures are booleans, numbers, intervals (`mean (low – high)`, for rates with the number of
    questions), lists of at most
    MAX_LIST_LENGTH numbers, and strings.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, dict) and value.keys() == MEAN_KEYS:
        mean, low, high = (format_value(value[key]) for key in ("mean", "low", "high"))
        return f"{mean} ({low} – {high})"
    if isinstance(value, dict) and value.keys() == RATE_KEYS:
        rate, low, high = (format_value(value[key]) for key in ("rate", "low", "high"))
        return f"{rate} ({low} – {high}) of {format_value(value['questions'])}"
    if isinstance(value, list) and 0 < len(value) <= MAX_LIST_LENGTH:
        if all(parse_number(item) is not None for item in value):
            return f"[{', '.join(str(format_value(item)) for item in value)}]"
        return None
    return value if isinstance(value, str) else None


def _format_float(value: float) -> str:
    """Return four significant digits below 0.001, four decimals below 1000, else one decimal."""
    if not math.isfinite(value):
        return str(value)
    magnitude = abs(value)
    if 0 < magnitude < 0.001:
        return f"{value:.4g}"
    if magnitude < 1000:
        return f"{value:,.4f}"
    return f"{value:,.1f}"
