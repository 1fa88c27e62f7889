"""Imports at the start of a command: everybody waits for them, every time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Processes that `bench.gpu` starts; they have no options.
INTERNAL_MODULES = {"bench.gpu.runs", "bench.gpu.worker"}
PACKAGES = ("assets", "bench", "chat", "data", "evaluate", "model", "train")
HEAVY_PACKAGES = (
    "datasets",
    "google.protobuf",
    "jieba",
    "jinja2",
    "matplotlib",
    "numpy",
    "opencc",
    "pyarrow",
    "requests",
    "safetensors",
    "sentencepiece",
    "starlette",
    "tensorboard",
    "tokenizers",
    "torch",
    "transformers",
    "uvicorn",
    "yaml",
)
HELP_SCRIPT = """
import contextlib, io, json, runpy, sys
modules, heavy_packages = json.loads(sys.argv[1])
result = {}
loaded = set()
for module in modules:
    sys.argv = [module, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            assert not end.code, module
    imported = {name for name in heavy_packages if name in sys.modules}
    result[module] = [output.getvalue(), sorted(imported - loaded)]
    loaded |= imported
print(json.dumps(result))
"""
WORK_SCRIPT = """
import sys
import chat.terminal.repl, evaluate.measures.passage_qa, evaluate.measures.rouge
import model.interop.gguf.export, model.interop.hf_import, train.sft_run, train.pretrain_run
import torch
from train.optimizer import AdamW, Muon
weight = torch.nn.Parameter(torch.ones(2, 2))
weight.grad = torch.ones(2, 2)
AdamW([{"params": [weight], "lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}]).step()
Muon([{"params": [weight], "lr": 1e-3, "momentum": 0.9, "weight_decay": 0.1}]).step()
print("torch" in sys.modules, "torch._dynamo" in sys.modules)
"""


def run_python(code: str, *arguments: str) -> str:
    """Return what a fresh Python prints."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def find_commands() -> list[str]:
    """Return the modules that are commands: they call `run_main`."""
    modules = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "\n    run_main(" in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                modules.append(".".join(parts).removesuffix(".__main__"))
    return [module for module in modules if module not in INTERNAL_MODULES]


@pytest.mark.slow
def test_help_of_every_command_imports_no_heavy_package() -> None:
    """Prevents seconds of imports before a page of help, or before an error about an option."""
    commands = find_commands()
    assert {"train.pretrain", "chat", "data.prepare", "evaluate.rouge", "bench.sft"} < set(commands)
    answers = json.loads(run_python(HELP_SCRIPT, json.dumps([commands, HEAVY_PACKAGES])))
    for command, (text, imported) in answers.items():
        assert text.startswith(f"usage: python -m {command} ") and "--help" in text
        assert not imported, f"python -m {command} --help imports {', '.join(imported)}"


@pytest.mark.slow
def test_no_command_imports_pytorch_compiler() -> None:
    """Prevents seconds of imports, at a start or first step, that only training on a GPU needs."""
    assert run_python(WORK_SCRIPT) == "True False"
