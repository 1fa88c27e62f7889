"""Guessing encodings: the command that a message names converts the file."""

import subprocess
from pathlib import Path

import pytest

from data.readers.encoding import describe_encoding, is_utf8

SIMPLIFIED = "从前有一座山，山里有一座庙，庙里有个老和尚在讲故事。"
TRADITIONAL = "從前有一座山，山裡有一座廟，廟裡有個老和尚在講故事。"


@pytest.mark.parametrize(
    ("text", "codec", "name"),
    [
        (SIMPLIFIED, "gbk", "GBK"),
        (SIMPLIFIED, "gb18030", "GBK"),
        (TRADITIONAL, "big5", "Big5"),
        (SIMPLIFIED, "utf-16", "UTF-16"),
        (SIMPLIFIED, "utf-16-le", "UTF-16"),
        (SIMPLIFIED, "utf-16-be", "UTF-16"),
        ("abc", "utf-16-le", "UTF-16"),
        (SIMPLIFIED, "utf-32", "UTF-32"),
    ],
)
def test_named_command_converts_the_file(tmp_path: Path, text: str, codec: str, name: str) -> None:
    """Prevents a remedy for another encoding, and one that a shell reads in two pieces."""
    text = f'{{"text": "{text}"}}\n' * 3
    path = tmp_path / "my corpus.jsonl"
    path.write_bytes(text.encode(codec))
    assert not is_utf8(path.read_bytes())
    description = describe_encoding(path.read_bytes(), path)
    assert description.startswith(f"not UTF-8 but {name}: convert it: ")
    command = description.removeprefix(f"not UTF-8 but {name}: convert it: ")
    subprocess.run(command, shell=True, check=True)
    assert (tmp_path / "my corpus.utf8.jsonl").read_text("utf-8").removeprefix("\ufeff") == text


@pytest.mark.parametrize(
    "data", [SIMPLIFIED.encode().replace("山".encode(), b"\xff", 1), bytes(range(128, 256)) * 4]
)
def test_other_bytes_are_not_called_an_encoding(data: bytes) -> None:
    """Prevents a remedy that would turn one bad byte in UTF-8 into a file of wrong characters."""
    assert not is_utf8(data)
    assert "iconv" not in describe_encoding(data)


def test_cut_character_is_utf8() -> None:
    """Prevents the first bytes of a file from being called something else for where they end."""
    assert is_utf8(SIMPLIFIED.encode()[:-1]) and is_utf8(b"") and is_utf8(b"a\0bcdefgh")
