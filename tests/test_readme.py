"""The commands in README.md and docs/ exist and have the options that are shown.

Commands are read from shell fences, indented blocks and inline code: `make TARGET NAME=VALUE…` and
`python -m MODULE --option…`, also after prompts, variables and `&&`, and over continued lines.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import pytest

from common.metrics_file import read_metrics
from data.corpora.manifests import load_corpora
from tests.helpers import processes
from tests.helpers.training import TINY_SHAPE, to_arguments

ROOT = Path(__file__).parent.parent
README, CHINESE_README = ROOT / "README.md", ROOT / "README.zh.md"
DOCUMENTS = [
    README,
    CHINESE_README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "bench" / "README.md",
]
SHELLS = {"", "sh", "bash", "shell", "console", "shell-session", "text"}
FENCE = re.compile(r" *(```+|~~~+) *([^`\s]*)[^`]*$")
PROMPT = re.compile(r"(\([\w.-]+\) )?[$%>] ")
WRAPPER = re.compile(r"\w+=.*|time|nohup|nice|env|sudo|taskset|-c|\d+")
OPERATORS = {"&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1"}
# Placeholders for any option.
PLACEHOLDERS = {"--key", "--dotted.key", "--group.key"}


@dataclass(frozen=True)
class Command:
    """One command: `make` or the module that `python -m` runs, and its arguments."""

    program: str
    arguments: tuple[str, ...]

    @property
    def options(self) -> set[str]:
        """Return the names of its `--options`."""
        names = {
            argument.partition("=")[0].rstrip("…")
            for argument in self.arguments
            if re.match(r"--\w", argument)
        }
        return names - PLACEHOLDERS


def extract_code(markdown: str) -> Iterator[str]:
    """Yield the text of every shell fence, indented block and inline code."""
    prose: list[str] = []
    block: list[str] = []
    fence, language = "", ""
    for line in [*markdown.splitlines(), ""]:
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                yield from ["\n".join(block)] if language.lower() in SHELLS else []
                fence, block = "", []
            else:
                block.append(line)
        elif mark:
            fence, language = mark[1], mark[2]
        elif line.startswith(("    ", "\t")) and (block or not prose):
            block.append(line)
        elif line.strip():
            yield from ["\n".join(block)] if block else []
            block, prose = [], [*prose, line]
        else:
            yield from (
                code
                for _, code in re.findall(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", " ".join(prose))
            )
            block, prose = [*block, line] if block else [], []
    yield "\n".join(block)


def parse_commands(shell: str) -> Iterator[Command]:
    """Yield the `make` and `python -m` commands in lines of shell, which may include output."""
    lines = (
        PROMPT.sub("", line.strip(), count=1)
        for line in re.sub(r"\\\n\s*(> )?", " ", shell).splitlines()
    )
    for line in lines:
        try:
            tokens = shlex.split(line, comments=True)
        except ValueError:
            assert not re.match(r"(make|python\S*|torchrun) ", line), (
                f"no command can be read from: {line}"
            )
            continue
        simple: list[str] = []
        for token in [*tokens, ";"]:
            if token not in OPERATORS:
                simple.append(token.strip("[]").removesuffix(";"))
            if token in OPERATORS or token.endswith(";"):
                yield from _command(simple)
                simple = []


def _command(tokens: list[str]) -> Iterator[Command]:
    while tokens and WRAPPER.fullmatch(tokens[0]):
        tokens = tokens[1:]
    program = tokens[0].rpartition("/")[2] if tokens else ""
    if program == "make":
        yield Command("make", tuple(tokens[1:]))
    elif re.fullmatch(r"python[\d.]*|torchrun", program) and "-m" in tokens[1:-1]:
        at = tokens.index("-m")
        if program == "torchrun" or at == 1:
            # torchrun takes options behind the module for its own unless a `--` stands before it.
            module, *rest = tokens[at + 2 if tokens[at + 1] == "--" else at + 1 :]
            yield Command(module, tuple(rest))


def documented() -> list[Command]:
    """Return the distinct commands of all documents, in order."""
    shells = (
        shell
        for document in DOCUMENTS
        for shell in extract_code(document.read_text(encoding="utf-8"))
    )
    return list(dict.fromkeys(command for shell in shells for command in parse_commands(shell)))


COMMANDS = documented()
MAKES = [command for command in COMMANDS if command.program == "make"]
MODULES = sorted({command.program for command in COMMANDS} - {"make"})


@lru_cache
def help_text(module: str, *subcommand: str) -> str:
    """Return the output of `python -m MODULE [SUBCOMMAND] --help`; check its exit code."""
    done = processes.run_command(module, *subcommand, "--help")
    assert done.returncode == 0, f"python -m {module} --help: {done.stderr}"
    return done.stdout


def check(command: Command) -> None:
    """Check that the module exists and that its help has the options of the command."""
    if not (ROOT / command.program.partition(".")[0]).is_dir():
        assert importlib.util.find_spec(command.program.partition(".")[0]), (
            f"there is no module {command.program}"
        )
        return
    text = help_text(command.program)
    first = command.arguments[0] if command.arguments else ""
    if re.fullmatch(r"[a-z]+", first) and re.search(rf"^  {first}  ", text, re.MULTILINE):
        text = help_text(command.program, first)
    for option in command.options - {"--help"}:
        assert re.search(rf"(?<![\w.-]){re.escape(option)}(?![\w.-])", text), (
            f"python -m {command.program} has no {option}, which the documents use: "
            f"{' '.join(command.arguments)}"
        )


def make_plan(command: Command) -> str:
    """Return what make would run, without the variables that `make test` exports."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        ["make", "-n", *(argument for argument in command.arguments if argument != "…")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"make {' '.join(command.arguments)}: {done.stderr}"
    return done.stdout


def commands_of(document: Path) -> list[Command]:
    """Return all commands of a document, in order."""
    shells = extract_code(document.read_text(encoding="utf-8"))
    return [command for shell in shells for command in parse_commands(shell)]


def test_both_readmes_have_the_same_commands() -> None:
    """Prevents one language from teaching commands that the other one lacks."""
    assert commands_of(README) == commands_of(CHINESE_README)


def test_documentation_contains_commands() -> None:
    """Prevents the tests below from passing because no command was read from the documents."""
    in_readme = set(commands_of(README))
    assert {"make", "train.pretrain"} <= {command.program for command in in_readme}
    assert any(
        "pretrain" in command.arguments for command in in_readme if command.program == "make"
    )
    assert len(MODULES) >= 5 and sum(bool(command.options) for command in COMMANDS) >= 5


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        (
            "```bash\n$ make a X=1  # why\n(.venv) $ OMP_NUM_THREADS=1 "
            ".venv/bin/python3.11 -m m.n --x \\\n>     --y=2 'a # b'\n```",
            [("make", "a", "X=1"), ("m.n", "--x", "--y=2", "a # b")],
        ),
        (
            "text\n\n    make a && make b; cd x && make c | tail > log\n"
            "    it's output: make d\n\n    make e\n",
            [("make", "a"), ("make", "b"), ("make", "c"), ("make", "e")],
        ),
        (
            "1. item\n   ```console\n   make a\n   ```\n~~~\nmake b\n```\nmake c\n~~~\n",
            [("make", "a"), ("make", "b"), ("make", "c")],
        ),
        (
            "```python\nmake = 1\n```\n```yaml\nmake: x\n```\n"
            "```\n# make a\nmake:\npython x.py -m y\n```\n"
            "Then\n    make sure.\n",
            [],
        ),
        (
            "Say `make a` or ``make b``, or `python -m m --x\n1`; "
            "`a` is not `make`.\n\n| `make c` | make d |\n",
            [("make", "a"), ("make", "b"), ("m", "--x", "1"), ("make",), ("make", "c")],
        ),
        (
            "```\ntorchrun --nproc_per_node 2 -m train.pretrain --x 1 [--json OUT] "
            '[ARGS="--a b"]\ntaskset -c 1 make t &\n```',
            [("train.pretrain", "--x", "1", "--json", "OUT", "ARGS=--a b"), ("make", "t")],
        ),
        ("make a\n\n    make b", [("make", "b")]),
    ],
)
def test_commands_are_parsed_from_markdown(markdown: str, expected: list[tuple[str, ...]]) -> None:
    """Prevents commands that the parser misses, and prose that it takes for commands."""
    shells = [command for shell in extract_code(markdown) for command in parse_commands(shell)]
    assert [(command.program, *command.arguments) for command in shells] == expected


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_documented_options_exist(module: str) -> None:
    """Prevents documents that name a command or an option by an old name."""
    for command in COMMANDS:
        if command.program == module:
            check(command)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "command", MAKES, ids=lambda command: " ".join(command.arguments) or "make"
)
def test_documented_targets_exist(command: Command) -> None:
    """Prevents documented targets, variables or ARGS options that do not exist."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for name in (argument.partition("=")[0] for argument in command.arguments if "=" in argument):
        assert re.search(rf"\$\((|call .*,){name}\)", makefile), (
            f"the Makefile uses no {name}: make {' '.join(command.arguments)}"
        )
    for behind in parse_commands(make_plan(command)):
        if behind.program != "make":
            check(behind)


def test_wrong_commands_are_detected() -> None:
    """Prevents checks that pass for anything."""
    for wrong, message in [
        ("no.such.module", "no module no.such"),
        ("train.pretrain", "has no --steps"),
        ("data.tokenizer", "has no --batch"),
        ("train.nothing", "python -m train.nothing --help"),
    ]:
        arguments = {
            "train.pretrain": ("--max_steps", "1", "--steps", "2"),
            "data.tokenizer": ("train", "--batch", "x"),
        }
        with pytest.raises(AssertionError, match=message):
            check(Command(wrong, arguments.get(wrong, ())))
    check(Command("train.pretrain", ("--max_steps", "1", "--dotted.key", "x", "--model.preset=y")))
    if shutil.which("make"):
        with pytest.raises(AssertionError, match="nosuchtarget"):
            make_plan(Command("make", ("nosuchtarget",)))


def test_documented_configs_exist() -> None:
    """Prevents documents that name a configuration file by an old name."""
    named = {
        name
        for command in COMMANDS
        for name in re.findall(r"configs/[\w.-]+\.yaml", " ".join(command.arguments))
    }
    assert named and all((ROOT / name).is_file() for name in named)


@pytest.mark.slow
def test_documented_pretraining_command_runs(tmp_path: Path) -> None:
    """Prevents a documented command that has valid options and still fails."""
    named = {"sample", *load_corpora()}
    command = next(
        command
        for command in COMMANDS
        if command.program == "train.pretrain"
        and {"--run", "--data"} <= command.options
        and command.arguments[command.arguments.index("--data") + 1] in named
    )
    # Run outside the checkout, where no data are prepared. Later options override earlier ones.
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    small = [
        "--device",
        "cpu",
        *to_arguments({"model": TINY_SHAPE}),
        "--model.preset",
        "babyllama-3m",
        "--max_steps",
        "2",
        "--batch_tokens",
        "64",
        "--sequence_length",
        "32",
        "--micro_batch",
        "2",
        "--evaluation.tokens",
        "64",
        "--evaluation.sample_tokens",
        "2",
    ]
    done = processes.CommandProcess(
        "train.pretrain", *command.arguments, *small, fault=partial(os.chdir, tmp_path)
    ).wait()
    assert done.returncode == 0, done.stderr
    run = Path(command.arguments[command.arguments.index("--run") + 1])
    assert "complete: " + str(run) in done.stdout
    kinds = {record["kind"]: record["step"] for record in read_metrics(tmp_path / run)}
    assert kinds["train"] == kinds["validation"] == kinds["sample"] == 2
