"""The folder of what the chat keeps between its runs."""

from pathlib import Path

import pytest

from chat.terminal import cache_dir
from common.errors import UserError


def test_user_without_a_home_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents a traceback in a container whose user has no entry and no HOME."""

    def has_no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", has_no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="HOME"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "babyllama"
