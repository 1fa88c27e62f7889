"""What a command imports before it has anything to do: everybody waits for that, every time."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HELP = """
import contextlib, io, runpy, sys
sys.argv = ["command", "--help"]
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
    runpy.run_module({!r}, run_name="__main__", alter_sys=True)
assert "--" in said.getvalue()
print("torch" in sys.modules)
"""
WORK = """
import sys
import chat.terminal.repl, evaluate.reading, evaluate.rouge, model.interop.gguf.export, model.import_hf, train.pretrain, train.sft
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""


def python(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    "module",
    [
        "chat",
        "chat.serve",
        "evaluate",
        "data.download",
        "data.prepare",
        "data.tokenizer",
        "model.export",
    ],
)
def test_help_does_not_import_pytorch(module: str) -> None:
    """Seconds before a page of text."""
    assert python(HELP.format(module)) == "False"


@pytest.mark.slow
def test_no_command_imports_pytorch_compiler() -> None:
    """A second and a half before every answer and every measure, for what only training on a GPU uses."""
    assert python(WORK) == "True False"
