"""The Makefile passes its variables on unchanged. A stub stands in for Python."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Writes down the arguments it was called with, as a stand-in for the environment's python.
STUB = """#!/bin/sh
for argument in "$@"; do printf '%s\\0' "$argument"; done > "$CALLED"
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A project of a Makefile and an environment that is already set up."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name in (
        "requirements.txt",
        "requirements-dev.txt",
        "venv/.installed",
        "venv/.installed-dev",
    ):
        (tmp_path / name).touch()
    stub = tmp_path / "venv" / "bin" / "python"
    stub.write_text(STUB)
    stub.chmod(0o755)
    return tmp_path


def make(
    folder: Path, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """`make ARGUMENTS`, and the arguments that python was called with."""
    called = folder / "called"
    called.unlink(missing_ok=True)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/home/me",
        "CALLED": str(called),
        **variables,
    }
    done = subprocess.run(
        ["make", "VENV=venv", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    return done, called.read_text().split("\0")[:-1] if called.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "my corpus.txt",
        "a(b).txt",
        "it's.txt",
        'say "x".txt',
        "a;touch x",
        "a$HOME$(PY)`id`.txt",
        "a,b.txt",
        "back\\slash",
        "*",
        "x  y ",
        "a~/b",
        "#x",
        "语料.txt",
    ],
)
def test_make_variable_is_passed_unchanged(folder: Path, name: str) -> None:
    """Prevents one file name that becomes two arguments, and a name that the shell runs."""
    data, run = f"DATA={name}", f"RUN={name}"
    assert make(folder, "data", data)[1] == ["-m", "data.download", name]
    assert make(folder, "data", DATA=name)[1] == ["-m", "data.download", name]
    assert make(folder, "index", data)[1] == ["-m", "data.index", "--data", name]
    for target in ("pretrain", "sft", "dpo"):
        assert make(folder, target, data, run, f"CONFIG={name}", f"BASE={name}")[1] == [
            "-m",
            f"train.{target}",
            "--config",
            name,
            "--data",
            name,
            "--base",
            name,
            "--run",
            name,
        ]
    assert make(folder, "summariser", data, f"HOURS={name}")[1] == [
        *("-m", "train.summariser", "--data", name, "--hours", name)
    ]
    assert make(folder, "serve", INDEX=name)[1] == ["-m", "chat.serve", "--index", name]
    for target, module in (("chat", "chat"), ("serve", "chat.serve"), ("evaluate", "evaluate")):
        assert make(folder, target, run)[1] == ["-m", module, "--checkpoint", name]
    assert make(folder, "chat", f"INDEX={name}")[1] == ["-m", "chat", "--index", name]
    assert not (folder / "x").exists()


def test_home_folder_path_is_expanded(folder: Path) -> None:
    """Shells that leave the ~ of DATA=~/corpus.txt to whoever reads it."""
    assert make(folder, "pretrain", "DATA=~/my corpus.txt")[1][-1] == "/home/me/my corpus.txt"


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("data", ["data.download"]),
        ("index", ["data.index"]),
        ("pretrain", ["train.pretrain"]),
        ("sft", ["train.sft"]),
        ("dpo", ["train.dpo"]),
        ("grpo", ["train.grpo"]),
        ("summariser", ["train.summariser"]),
        ("chat", ["chat"]),
        ("serve", ["chat.serve"]),
        ("evaluate", ["evaluate"]),
    ],
)
def test_unset_make_variables_use_command_defaults(
    folder: Path, target: str, arguments: list[str]
) -> None:
    """Prevents defaults in the Makefile beside those of the commands; ARGS as one argument."""
    (folder / "runs" / "x").mkdir(parents=True)
    assert make(folder, target)[1] == ["-m", *arguments]
    called = make(folder, target, "DATA=", "RUN=", "ARGS=--limit 3 --name 'a b'")[1]
    assert called == ["-m", *arguments, "--limit", "3", "--name", "a b"]


def test_export_names_its_folder_after_the_run(folder: Path) -> None:
    """An export into the folder `exports` itself, or of no run at all."""
    for run, name in (("runs/sft-csl", "sft-csl"), ("runs/my run/", "my run"), ("x", "x")):
        assert make(folder, "export", f"RUN={run}", "ARGS=--dtype bfloat16")[1] == [
            "-m",
            "model.export",
            "--checkpoint",
            run,
            "--format",
            "hf",
            "--out",
            f"exports/{name}",
            "--dtype",
            "bfloat16",
        ]
    (folder / "runs" / "sft-csl").mkdir(parents=True)
    done, called = make(folder, "export")
    assert done.returncode != 0 and not called
    assert done.stderr.splitlines()[:2] == [
        "error: which run? make export RUN=runs/NAME",
        "runs/sft-csl",
    ]


@pytest.mark.slow
def test_setup_shows_progress_only_on_a_terminal(folder: Path) -> None:
    """Minutes of silence in front of somebody; hundreds of lines in a log."""
    pip = ["-m", "pip", "install", "--disable-pip-version-check"]
    (folder / "venv" / ".installed").unlink()
    assert make(folder, "setup")[1] == [*pip, "--quiet", "-r", "requirements.txt"]
    (folder / "venv" / ".installed").unlink()
    ours, theirs = os.openpty()
    environment = {"PATH": os.environ["PATH"], "CALLED": str(folder / "called")}
    subprocess.run(
        ["make", "VENV=venv", "setup"],
        cwd=folder,
        env=environment,
        stdout=theirs,
        stderr=theirs,
        check=True,
    )
    os.close(theirs)
    os.close(ours)
    assert (folder / "called").read_text().split("\0")[:-1] == [*pip, "-r", "requirements.txt"]


@pytest.mark.parametrize(
    "argument",
    ["data=csl", "STEPS=5", "max_steps=5", "DTAA=csl", "a;touch${IFS}x='$(HOME)"],
)
def test_unknown_make_variable_is_refused(folder: Path, argument: str) -> None:
    """Prevents `make pretrain data=mine` from training on the sample for an hour."""
    done, called = make(folder, "pretrain", argument, "DATA=x")
    lines = done.stderr.splitlines()
    assert (done.returncode, called, len(lines)) == (2, [], 1)
    assert f"unknown variable {argument.partition('=')[0][:5]}" in lines[0]
    assert "the variables are DATA BASE RUN CONFIG INDEX HOURS ARGS PYTHON VENV" in lines[0]
    assert not (folder / "x").exists()


def test_variables_of_an_outer_make_are_accepted(folder: Path) -> None:
    """Prevents failing on the variables of an outer make that calls this one."""
    for arguments, variables in (
        (["SHELL=/bin/sh"], {"CUDA_VISIBLE_DEVICES": "1", "steps": "5"}),
        (["CC=gcc"], {"MAKELEVEL": "1"}),
        (["-j2"], {}),
    ):
        done, called = make(folder, "data", "DATA=x", *arguments, **variables)
        assert called == ["-m", "data.download", "x"], done.stderr


def test_every_target_is_phony_and_in_help(folder: Path) -> None:
    """Prevents a target shadowed by a folder of its name (data), or missing from the help."""
    text = (folder / "Makefile").read_text(encoding="utf-8")
    (phony,) = (set(line.split()) for line in re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE))
    targets = set(re.findall(r"^([a-z-]+):(?!=)", text, re.MULTILINE))
    assert phony == targets
    helped = set(re.findall(r"make ([a-z-]+)", make(folder, "help")[0].stdout))
    assert targets - helped == {"help", "setup-dev", "sample"} and helped <= targets
