"""`python -m data.prepare`: source groups, errors and help."""

import sys
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare import __main__ as prepare_command
from data.prepare.source_args import SourceGroup, parse_source_groups


def test_source_groups_are_parsed_from_command_line() -> None:
    """Prevents inputs that are read as another source, and options of the command that are lost."""
    arguments = (
        "--source mnbvc --input a b --out o --source=jsonl:x --input=c --workers 2 --input hub"
    )
    groups, rest = parse_source_groups(arguments.split())
    assert groups == [SourceGroup("mnbvc", ("a", "b")), SourceGroup("jsonl:x", ("c", "hub"))]
    assert rest == ["--out", "o", "--workers", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--input a", "name its source first"),
        ("--source", "takes one name"),
        ("--source a b", "takes one name"),
        ("--source nothing --input a", "unknown source"),
        ("--source mnbvc --out o", "source mnbvc: needs --input"),
        ("--source mnbvc --input --out o", "--input needs"),
        ("--out o --tokenizer t", "is needed: see --help"),
        ("--source text --input a --out o", "--tokenizer: is required"),
        (
            "--source text --input a --out o --tokenizer t --dedup.treshold 1",
            "did you mean --dedup.threshold",
        ),
        ("--source text --input a --out o --tokenizer nothing", "nothing does not exist"),
    ],
)
def test_command_line_errors_are_reported(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents a traceback for a mistake on the command line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *arguments.split()])
    with pytest.raises(UserError, match=message):
        prepare_command.main()


def test_help_shows_sources_options_and_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a help text without the sources, or an error about options missing beside it."""
    monkeypatch.setattr(sys, "argv", ["prepare", "--source", "mnbvc", "--help"])
    with pytest.raises(SystemExit) as caught:
        prepare_command.main()
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in (
        "wiki_zh_2019",
        "mnbvc_qa",
        "--dedup.threshold",
        "--clean.minimum_characters",
        "--input hub",
        "--out",
    ):
        assert word in text
