"""Bad options: every mistake ends with exit code 2 and one line that names it and the remedy.

The table, `bad_options.txt`, has a row for each mistake: the command, and what the one line on
stderr must contain. `{...}` are files and folders of the fixture `places`. The commands run in this
process, a few at the end in one of their own.
"""

import importlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from common.errors import run_main
from common.files import write_checksummed_json, write_json
from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from model.checkpoint import weights
from model.config import LlamaConfig
from model.interop.hf_export import export_hf
from model.llama import Llama
from model.tokenizer import load_tokenizer
from tests.helpers.processes import run_command

TRAIN = "train.pretrain --data {text} --run {new}"
TUNE = "train.sft --base none --data {pairs} --run {new}"
PREPARE = "data.prepare --source jsonl --input {corpus} --tokenizer {tokenizer} --out {new}"
SCORE = "evaluate.perplexity --checkpoint {model}"

EXPORT = "model.export --checkpoint {model} --format"
SHORT = {
    "<TRAIN>": TRAIN,
    "<TUNE>": TUNE,
    "<PREPARE>": PREPARE,
    "<SCORE>": SCORE,
    "<EXPORT>": EXPORT,
    "<FROM>": PREPARE.removesuffix(" --out {new}"),
    "<INTO>": "--tokenizer {tokenizer} --out {new}",
}
TABLE = Path(__file__).with_name("bad_options.txt").read_text(encoding="utf-8")
ROWS = [line.split("|", 1) for line in TABLE.splitlines() if not line.startswith("#")]
# Programs that a command starts for itself; nobody types them.
INTERNAL = {
    "assets.sample_generator.reading_check",
    "bench.gpu.preload",
    "bench.gpu.runs",
    "bench.gpu.worker",
    "model.chat_template.jinja_sandbox",
}


@pytest.fixture(scope="module")
def places(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the table names, by name."""
    folder = tmp_path_factory.mktemp("places")
    paths = {
        name: folder / name
        for name in (
            "corpus",
            "tsv",
            "empty",
            "folder",
            "nowhere",
            "huge",
            "binary",
            "archive",
            "surrogate",
            "text",
            "pairs",
            "broken_set",
            "model",
            "qwen",
            "cut",
            "other_shape",
            "other_vocabulary",
            "no_tokenizer",
            "damaged",
            "young",
            "broken_run",
            "adapter",
            "foreign",
            *(f"{kind}_yaml" for kind in ("list", "date", "deep", "bomb", "number", "code")),
        )
    }
    paths["tokenizer"] = root / "assets" / "tokenizer"
    paths["corpus"].write_text(
        "".join(
            json.dumps(
                {"text": f"第{n}篇：春天来了，村里的人都出门去看花。{chr(0x4E00 + 7 * n) * 30}"}
            )
            + "\n"
            for n in range(30)
        )
    )
    paths["tsv"].write_text(
        "".join(f"标题{n}\t文章{n}{chr(0x4E00 + n) * 40}\n" for n in range(30)), encoding="utf-8"
    )
    paths["empty"].touch()
    paths["folder"].mkdir()
    (paths["folder"] / ".hidden").touch()  # an empty folder may become a run, or a shard set
    paths["huge"].write_text("# " + "x" * (2 << 20))
    paths["binary"].write_bytes(b"\xff\xfe\0")
    paths["archive"].write_bytes(b"PK\x03\x04rest")
    paths["surrogate"].write_text('{"prediction": "\\ud800", "reference": "a"}\n')
    for kind, text in {
        "list": "- 1",
        "date": "note: 2024-13-45",
        "deep": "[" * 1000,
        "number": "1: 2",
        "code": "a: !!python/name:os.system",
        "bomb": "a: &a [x,x]\n"
        + "".join(f"{b}: &{b} [*{a},*{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    }.items():
        paths[f"{kind}_yaml"].write_text(text)
    options = PrepareOptions(workers=1)
    prepare_groups(
        [SourceGroup("jsonl", (str(paths["corpus"]),))], paths["text"], paths["tokenizer"], options
    )
    prepare_groups(
        [SourceGroup("csl", (str(paths["tsv"]),))], paths["pairs"], paths["tokenizer"], options
    )
    shutil.copytree(paths["text"], paths["broken_set"])
    next(paths["broken_set"].glob("train-*.offsets.npy")).unlink()
    _models(paths)
    write_json(paths["young"] / "run.json", {"fingerprints": {}, "shards": []})
    (paths["broken_run"]).mkdir()
    (paths["broken_run"] / "run.json").write_text("{")
    assert not torch.cuda.is_available()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield {
            **{name: str(path) for name, path in paths.items()},
            "long": str(folder / ("x" * 5000)),
            "brackets": "[" * 2000,
            "digits": "1" * 5000,
            "port": str(listener.getsockname()[1]),
        }


def _models(paths: dict[str, Path]) -> None:
    """A checkpoint that is sound, and copies with a fault each."""
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    paths["model"].mkdir()
    weights.save_checkpoint(
        Llama(config).init_weights(0), load_tokenizer(paths["tokenizer"]), paths["model"]
    )
    for name in ("qwen", "cut", "other_shape", "other_vocabulary", "no_tokenizer", "damaged"):
        shutil.copytree(paths["model"], paths[name])
    for name, change in {
        "qwen": {"model_type": "qwen2"},
        "other_shape": {"intermediate_size": 48},
        "other_vocabulary": {"vocab_size": 100},
    }.items():
        write_json(paths[name] / "config.json", {**config.to_hf(), **change})
    (paths["no_tokenizer"] / "tokenizer.model").unlink()
    file = paths["cut"] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    write_checksummed_json(
        paths["damaged"] / "manifest.json",
        {
            "files": {
                "model.safetensors": {
                    "bytes": (paths["damaged"] / "model.safetensors").stat().st_size,
                    "sha256": "0" * 64,
                }
            }
        },
    )
    shutil.copytree(paths["model"], paths["adapter"])
    (paths["adapter"] / "model.safetensors").rename(paths["adapter"] / "adapter_model.safetensors")
    write_json(
        paths["adapter"] / "adapter_config.json", {"base_model_name_or_path": str(paths["nowhere"])}
    )
    export_hf(paths["model"], paths["foreign"])
    for name in ("manifest.json", "tokenizer.model"):
        (paths["foreign"] / name).unlink()


def test_bad_options_table_is_well_formed() -> None:
    """Rows that are skipped by the way they are written, or that are there twice."""
    assert len(ROWS) > 270 and all(len(row) == 2 and row[1].strip() for row in ROWS)
    assert [
        row for row, count in Counter(row[0].strip() for row in ROWS).items() if count > 1
    ] == []


def test_every_command_has_bad_option_cases(root: Path) -> None:
    """A new command whose mistakes are tracebacks, or one that `run_main` does not watch over."""
    programs = {}
    for path in root.glob("[!.]*/**/*.py"):
        if match := re.search(
            r'^if __name__ == "__main__":\n    (\w+)',
            path.read_text(encoding="utf-8"),
            re.MULTILINE,
        ):
            programs[
                ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__main__")
            ] = match[1]
    commands = {name for name, called in programs.items() if called == "run_main"} - INTERNAL
    others = set(programs) - commands - INTERNAL
    assert all(name.startswith("tests.") for name in others)
    tried = Counter(SHORT.get(row[0].split()[0], row[0]).split()[0] for row in ROWS)
    assert len(commands) > 20 and set(tried) == commands
    assert {name for name in commands if tried[name] < 2} == set()


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), ROWS, ids=[row[0].strip() for row in ROWS])
def test_bad_option_error_is_one_line_naming_it(
    places: dict[str, str],
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    expected: str,
) -> None:
    """Prevents a traceback, a usage text, exit code 0 or 1, or half a run left in the way."""
    for short, long in SHORT.items():
        command = command.replace(short, long)
    new = tmp_path / "new"
    arguments = [argument.format(**places, new=new) for argument in shlex.split(command)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the command went on to talk"))
    module = importlib.import_module(arguments[0])
    with pytest.raises(SystemExit) as left:
        run_main(
            (
                importlib.import_module(f"{arguments[0]}.__main__")
                if hasattr(module, "__path__")
                else module
            ).main
        )
    error_lines = [
        line
        for line in capsys.readouterr().err.replace("\r", "\n").split("\n")
        if line.strip()
        and "it/s" not in line
        and "B/s" not in line
        and not line.startswith(("模型", "提示", "preparing:", "reading:", "scoring:", "turns:"))
    ]
    assert left.value.code == 2, error_lines
    parts = [part.strip().format(**places, new=new) for part in expected.split(" | ")]
    assert all(part in "\n".join(error_lines) for part in parts), error_lines
    # One line for each mistake; the rows with several lack several required options.
    assert error_lines and all(line.startswith("error: ") for line in error_lines)
    assert len(error_lines) == max(1, sum("is required" in part for part in parts))
    assert not new.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train.pretrain --max_stepz 3", "--max_stepz: unknown option"),
        ("data.download --parts", "--parts: needs a value"),
    ],
)
def test_commands_exit_with_one_line_error(root: Path, command: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("error: ")
        and expected in done.stderr
        and done.stderr.count("\n") == 1
    )


@pytest.mark.slow
def test_chat_exits_with_one_line_error() -> None:
    """Prevents a traceback, or an error in English, where chat finds no model."""
    done = run_command("chat", "--checkpoint", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: nowhere 中没有可用的模型"), done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_make_propagates_errors(root: Path, tmp_path: Path) -> None:
    """Prevents the line of make about its exit code from hiding the line of the command."""
    # What the make that runs the tests was told is not for the one inside a test.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("MAKEFLAGS", "MAKEOVERRIDES", "ARGS")
    }
    done = subprocess.run(
        ["make", "-o", "setup", "evaluate", "RUN=nowhere"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert done.returncode == 2 and "does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_names_differ_by_mixture_weights() -> None:
    """One that is taken for the other, and refused for its data."""
    from train.cli import default_run_folder

    assert (
        default_run_folder("sft", "csl+lcsts")
        == Path("runs/sft-csl+lcsts")
        != default_run_folder("sft", "csl:0.5+lcsts")
    )
