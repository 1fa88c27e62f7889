"""The command line of `python -m chat.serve`."""

import pytest

from chat.serve import options
from common.errors import UserError


def test_server_is_local_by_default() -> None:
    """Prevents a server that other machines reach although nobody asked for that."""
    assert options.parse_serve_options([]).host == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", "70000"),
        ("rows", "0"),
        ("api_key", ""),
        ("api_key", "密钥"),
        ("temperature", "9"),
    ],
)
def test_invalid_option_is_refused(name: str, value: str) -> None:
    """Prevents values that fail only after the model is loaded, and keys no client can send."""
    with pytest.raises(UserError, match=f"--{name}"):
        options.parse_serve_options([f"--{name}", value])
