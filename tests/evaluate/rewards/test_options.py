"""The names and weights of rewards."""

import pytest
from pydantic import TypeAdapter, ValidationError

from evaluate.rewards.options import Rewards, parse_rewards


def test_names_weights_and_files() -> None:
    """Prevents a weight taken for a part of a name, or a function for a weight."""
    assert parse_rewards("rouge, loops:0.5,exact:-2") == {"rouge": 1.0, "loops": 0.5, "exact": -2.0}
    assert parse_rewards("my/rules.py:score:0.25,a b.py:f") == {
        "my/rules.py:score": 0.25,
        "a b.py:f": 1.0,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bleu", "unknown reward bleu; choose rouge, rouge-1, exact"),
        ("rouge:much", "the weight of rouge, much, must be a number other than 0"),
        ("rouge:0", "other than 0"),
        ("rouge:inf", "other than 0"),
        ("rouge,rouge:2", "rouge is named twice"),
        (" ", "names no reward"),
        ("mine.py", "unknown reward mine.py"),
        ("mine.py:score:x", "the weight of mine.py:score, x, must be"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """Prevents a run whose reward is not the one that was meant."""
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(Rewards).validate_python(text)


def test_a_mapping_of_yaml_is_the_same() -> None:
    """Prevents a configuration file that only takes a text."""
    value = TypeAdapter(Rewards).validate_python({"rouge": "1", "mine.py:score": 0.5})
    assert parse_rewards(value) == {"rouge": 1.0, "mine.py:score": 0.5}
