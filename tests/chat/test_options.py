"""The command line of `python -m chat`."""

import pytest

from chat import options
from common.errors import UserError
from model.decode.sampling import DEFAULT_SAMPLING, Sampling


def test_sampling_options_reach_the_sampling() -> None:
    """Prevents an option that is parsed and then ignored."""
    assert options.parse_chat_options([]).to_sampling() == DEFAULT_SAMPLING
    arguments = [
        *("--temperature", "0"),
        *("--top_p", "0.5"),
        *("--top_k", "9"),
        *("--repetition_penalty", "2"),
        *("--no_repeat_ngram", "3"),
    ]
    sampling = options.parse_chat_options(arguments).to_sampling()
    assert sampling == Sampling(0.0, 9, 0.5, 2.0, 3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "nan"),
        ("temperature", "-1"),
        ("top_p", "1.5"),
        ("top_k", "2.5"),
        ("seed", "-1"),
        ("repetition_penalty", "0.5"),
        ("max_new_tokens", "0"),
        ("max_new_tokens", "many"),
    ],
)
def test_out_of_range_option_is_refused(name: str, value: str) -> None:
    """Prevents a bad value that fails in the middle of an answer."""
    with pytest.raises(UserError, match=f"--{name}: 应为.*，而不是 {value}"):
        options.parse_chat_options([f"--{name}", value])
