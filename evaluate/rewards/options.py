"""Names and weights of rewards, as options have them: `rouge:1,loops:0.5,mine.py:score`."""

import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

# What a reward is of an answer. All are higher for better answers.
REWARD_DESCRIPTIONS = {
    "rouge": "ROUGE-L F of characters with the true answer, 0 to 1",
    "rouge-1": "ROUGE-1 F of characters, in which their order does not count",
    "exact": "1 if it is the true answer",
    "number": "1 if its last number is that of the true answer",
    "length": "the shorter length over the longer one, its own and that of the true answer, 0 to 1",
    "repetition": "1 without repeated 4-grams of characters, 0 if nearly all are",
    "loops": "-1 if it loops",
    "truncated": "-1 if it does not end within the limit of length",
}
# A function in a file, which may have a weight: rewards/mine.py:score:0.5.
_USER_REWARD = re.compile(r"(?P<name>.+\.py:[^\W\d]\w*)(?::(?P<weight>[^:]*))?")


def parse_rewards(text: str) -> dict[str, float]:
    """Return the weight of each reward in `rouge:1,loops:0.5`, by its name; 1 if none is given.

    A name is one of REWARD_DESCRIPTIONS, or FILE.py:FUNCTION. Raises ValueError for anything else,
    for a reward that is there twice, and for a weight that is 0 or not a finite number.
    """
    weights: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _USER_REWARD.fullmatch(part)
        name, weight_text = (match["name"], match["weight"]) if match else _split_weight(part)
        if match is None and name not in REWARD_DESCRIPTIONS:
            raise ValueError(
                f"unknown reward {name}; choose {', '.join(REWARD_DESCRIPTIONS)}, or a function of "
                "your own, FILE.py:FUNCTION"
            )
        if name in weights:
            raise ValueError(f"{name} is named twice; once is enough")
        try:
            weight = float(weight_text or 1)
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(f"the weight of {name}, {weight_text}, must be a number other than 0")
        weights[name] = weight
    if not weights:
        raise ValueError("names no reward; choose one, such as rouge")
    return weights


def _split_weight(part: str) -> tuple[str, str]:
    name, _, weight_text = part.partition(":")
    return name.strip(), weight_text.strip()


def _join_mapping(value: Any) -> Any:
    """Return a mapping of names to weights as one text; other values are returned unchanged."""
    if isinstance(value, dict):
        return ",".join(f"{name}:{weight}" for name, weight in value.items())
    return value


def _check_rewards(text: str) -> str:
    """Return `text`. Raises ValueError if it does not name rewards."""
    parse_rewards(text)
    return text


# The type of an option: a text as above, or in YAML a mapping.
Rewards = Annotated[str, BeforeValidator(_join_mapping), AfterValidator(_check_rewards)]
