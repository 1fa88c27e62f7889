"""The command line: its groups, its mistakes, its help, its defaults."""

import sys
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare import __main__ as command
from data.prepare.source_args import SourceGroup, parse_source_groups


def test_source_groups_are_parsed_from_command_line() -> None:
    words = [
        "--source",
        "mnbvc",
        "--input",
        "a",
        "b",
        "--out",
        "o",
        "--source=jsonl:x",
        "--input=c",
        "--workers",
        "2",
        "--input",
        "hub",
    ]
    groups, rest = parse_source_groups(words)
    assert groups == [SourceGroup("mnbvc", ("a", "b")), SourceGroup("jsonl:x", ("c", "hub"))]
    assert rest == ["--out", "o", "--workers", "2"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--input a", "name its source first"),
        ("--source", "takes one name"),
        ("--source a b", "takes one name"),
        ("--source nothing --input a", "there is no such source"),
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
    words: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *words.split()])
    with pytest.raises(UserError, match=reason):
        command.main()


def test_help_shows_sources_options_and_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["prepare", "--source", "mnbvc", "--help"])
    with pytest.raises(SystemExit) as caught:
        command.main()
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
