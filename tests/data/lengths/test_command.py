"""The command: its lines, its files, and bad inputs."""

import gzip
import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data.lengths.__main__ import main
from data.lengths.options import LengthsOptions
from data.sources import find_source
from model.tokenizer.base import Tokenizer
from train.options import SftOptions

RunCommand = Callable[..., str]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> RunCommand:
    """Return a function that runs the command in an empty folder and returns what it prints."""
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["data.lengths", *arguments])
        main()
        return capsys.readouterr().out

    return run_command


def belle_line(number: int) -> str:
    """Return a record of Belle 0.5M."""
    row = {"instruction": f"第{number}个问题？", "input": "", "output": "答" * number}
    return json.dumps(row, ensure_ascii=False)


def test_default_step_is_that_of_training() -> None:
    """Prevents steps of another size than a run with default options has."""
    assert LengthsOptions(data="csl").batch_tokens == SftOptions().batch_tokens


@pytest.mark.slow
def test_survey_of_native_files(
    run: RunCommand, root: Path, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    """Prevents figures that are not those of the records, or files that differ from the lines."""
    file = root / "assets" / "sample" / "sft" / "redgpt" / "RedGPT-Dataset-V1-CN.test.json"
    arguments = ("--input", str(file), "--json", "out/a.json", "--picture", "out/a.svg")
    output = run(*arguments)
    figures = json.loads(Path("out/a.json").read_text())
    records = list(find_source("redgpt").iter_records(file))
    assert figures["data"] == "redgpt" and figures["examples"] == len(records)
    characters = [sum(len(turn.answer) for turn in record.turns) for record in records]
    assert figures["lengths"]["characters"]["answer"]["total"] == sum(characters)
    turns = [len(record.turns) for record in records]
    quantiles = figures["lengths"]["turns"]["whole"]["quantiles"]
    assert quantiles["0.9"] == np.quantile(turns, 0.9) and quantiles["1"] == max(turns)
    assert figures["tokenizer"] == tokenizer.fingerprint
    recommended = figures["recommended"]
    last_line = output.rstrip().splitlines()[-1]
    assert last_line == (
        f"recommended row length {recommended['length']:,}: {recommended['reason']}"
    )
    row = figures["rows"]["512"]
    cells = next(line for line in output.splitlines() if line.startswith("512 ")).split()
    assert cells[1] == f"{row['cut']:,}" and cells[-1] == f"{row['steps']:,}"
    picture = Path("out/a.svg").read_bytes()
    ids = {element.get("id") for element in ET.fromstring(picture).iter()}
    assert {"histogram", "coverage"} <= ids
    run(*arguments)
    assert Path("out/a.svg").read_bytes() == picture


@pytest.mark.slow
def test_unreadable_records_are_counted_and_named(run: RunCommand, tmp_path: Path) -> None:
    """Prevents a bad line that ends a survey, or that nobody hears of."""
    lines = [belle_line(number) for number in range(1, 250)]
    lines.insert(7, '{"instruction": "半句')
    file = tmp_path / "belle.json.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    output = run("--source", "belle-0.5m", "--input", str(file))
    assert f"left out, unreadable: 1 records, the first {file} line 8: not valid JSON" in output
    assert "belle-0.5m: 249 examples an epoch" in output
    assert "belle-0.5m: 7 examples" in run("--input", str(file), "--limit", "7")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf\r\n", "empty|cannot tell"),
        (b'{"instruction": "a"}\n', "there is no field|cannot tell|no usable record"),
        (b"\xff\xfe\x00\x01" * 9, "cannot tell|is "),
        ((belle_line(3) + "\n" + "{\n" * 5).encode(), "5 of 6 records cannot be read"),
        (b'{"instruction": "\\ud800", "input": "", "output": "b"}\n', "cannot|none"),
    ],
)
def test_files_that_are_no_data_are_refused_in_one_line(
    run: RunCommand, tmp_path: Path, content: bytes, message: str
) -> None:
    """Prevents a traceback, or a survey of nothing."""
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        run("--input", str(file))
    assert "\n" not in str(refused.value)


def test_documents_are_cleaned_before_they_are_measured(run: RunCommand, tmp_path: Path) -> None:
    """Prevents lengths of documents that a preparation drops, or of their markup."""
    text = "山里的风从东边来，带着雨后泥土的气味。" * 4
    rows = [{"text": f"<p>{text}{number}</p>"} for number in range(5)] + [{"text": "短"}]
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    output = run("--source", "jsonl", "--input", str(file), "--json", "a.json")
    assert "left out, too_short: 1 records" in output
    figures = json.loads(Path("a.json").read_text())
    assert figures["documents"] == 5
    assert figures["lengths"]["characters"]["whole"]["quantiles"]["1"] == len(text) + 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--data", "csl", "--input", "file"],
        ["--source", "csl"],
        ["--data", "csl", "--limit", "3"],
        ["--input", "nowhere.json"],
        ["--source", "nothing", "--input", "nowhere.json"],
        ["--data", "csl:-1"],
        pytest.param(["--data", "lcsts", "--tokenizer", "nowhere"], marks=pytest.mark.slow),
        ["--data", "csl", "--batch_tokens", "0"],
        ["--data", "csl", "--picture", "."],
    ],
)
def test_wrong_options_are_refused_in_one_line(run: RunCommand, arguments: list[str]) -> None:
    """Prevents a traceback, or an option that is ignored."""
    with pytest.raises(UserError) as refused:
        run(*arguments)
    assert "\n" not in str(refused.value)
