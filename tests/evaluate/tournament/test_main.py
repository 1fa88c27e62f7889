"""The commands by name, and their options."""

import sys

import pytest

from common.errors import UserError
from evaluate.tournament.__main__ import COMMANDS, main

JUDGE = ["judge", "--answers", "a.jsonl", "b.jsonl", "--battles", "v.jsonl"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.tournament", *arguments])
    main()


def test_help_shows_a_whole_tournament(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands that cannot be found, or a help that does not say in which order they are run."""
    with pytest.raises(SystemExit) as left:
        run(monkeypatch, "--help")
    assert left.value.code == 0
    printed = capsys.readouterr().out
    positions = [printed.index(f"evaluate.tournament {command} --") for command in COMMANDS]
    assert positions == sorted(positions)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as left:
            run(monkeypatch, command, "--help")
        assert left.value.code == 0 and "options:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command is given; the commands are answer, judge, rate"),
        (["jugde"], "unknown command 'jugde'; did you mean judge?"),
        (["\x1b[2J"], "unknown command '\\x1b[2J'; the commands are"),
        (JUDGE, "give the judge: either --endpoint URL --judge MODEL, or --person"),
        ([*JUDGE, "--person", "--endpoint", "http://x/v1", "--judge", "m"], "give the judge"),
        ([*JUDGE, "--endpoint", "http://x/v1"], "--endpoint needs --judge MODEL"),
        ([*JUDGE, "--person", "--dry_run"], "--dry_run is for --endpoint"),
        ([*JUDGE, "--person", "--judge", "a\x07"], "--judge: a name has only printable"),
        ([*JUDGE, "--endpoint", "ftp://x", "--judge", "m"], "--endpoint: give a URL such as"),
        ([*JUDGE, "--endpoint", "x.org/v1", "--judge", "m"], "--endpoint: give a URL such as"),
        ([*JUDGE, "--endpoint", "https://", "--judge", "m"], "--endpoint: give a URL such as"),
        ([*JUDGE, "--endpoint", "https://u:p@x/v1", "--judge", "m"], "URL without user name"),
        ([*JUDGE, "--endpoint", "https://x/v1?key=k", "--judge", "m"], "URL without user name"),
        ([*JUDGE, "--endpoint", "http://x:99999/v1", "--judge", "m"], "--endpoint: "),
        ([*JUDGE, "--endpoint", "http://[/v1", "--judge", "m"], "--endpoint: "),
        ([*JUDGE, "--endpoint", "http://中/v1", "--judge", "m"], "visible ASCII characters"),
        (["judge", "--answers", "a", "--battles", "v", "--person"], "files of at least two models"),
    ],
)
def test_wrong_options_are_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """A traceback, a password that is printed, or a tournament without a judge."""
    with pytest.raises(UserError) as caught:
        run(monkeypatch, *arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert "u:p@" not in str(caught.value) and "key=k" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://x:1/v1", "http://x:1/v1/", "http://x:1/v1/chat/completions"]
)
def test_endpoint_is_a_base_url_or_the_route(url: str) -> None:
    """A route that is there twice, or not at all."""
    from evaluate.tournament.options import JudgeOptions

    options = JudgeOptions(answers=("a", "b"), battles="v", endpoint=url, judge="m")
    assert options.endpoint == "http://x:1/v1/chat/completions"
