"""What all tests share."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's own root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real third-party corpora and the real tokenizer, which the project never contains."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("the real corpora and tokenizer are not beside this checkout (../shared)")
    return folder
