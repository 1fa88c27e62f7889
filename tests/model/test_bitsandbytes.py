"""bitsandbytes is optional: one line without it, and nothing but arithmetic with it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.options import parse_options
from model.bitsandbytes import require_bitsandbytes
from train.options import SftOptions
from train.run.start import resolve_device_for_training
from train.sft_run import resolve_run

INSTALL = "needs bitsandbytes, which is not installed: pip install -r requirements-qlora.txt"


@pytest.mark.parametrize(
    ("option", "arguments", "resolve"),
    [
        ("--quantize nf4", ["--quantize", "nf4", "--adapter", "lora"], resolve_run),
        (
            "--optimizer.name adamw8bit",
            ["--optimizer.name", "adamw8bit"],
            resolve_device_for_training,
        ),
    ],
)
def test_missing_package_is_one_line_before_anything_is_read(
    option: str, arguments: list[str], resolve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catch an import error after minutes of preparing data."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = parse_options(
        SftOptions, ["--device", "cpu", *arguments], name="train.sft", description=""
    )
    with pytest.raises(UserError) as error:
        resolve(options)
    assert str(error.value) == f"{option}: {INSTALL}"


def test_installed_package_is_found() -> None:
    """Catch a check that refuses an installed package."""
    require_bitsandbytes("--quantize nf4")


@pytest.mark.slow
def test_import_warns_and_downloads_nothing(root: Path) -> None:
    """Catch a warning at every start, and a compiled kernel that is fetched without being asked."""
    code = (
        "import sys; from model.bitsandbytes import load_functional; load_functional(); "
        "print('kernels' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("False\n", "", 0)
