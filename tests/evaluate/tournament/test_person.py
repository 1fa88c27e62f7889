"""A person as the judge, on a terminal and through a pipe."""

import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evaluate.tournament import __main__ as tournament
from tests.helpers.terminal import CTRL_D, Terminal

Run = Callable[..., None]
PROMPT = "stop: q > "


def arguments(answers: list[Path], battles: Path) -> list[str]:
    return ["judge", "--person", "--answers", *map(str, answers), "--battles", str(battles)]


@contextmanager
def open_terminal(answers: list[Path], battles: Path) -> Iterator[Terminal]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    terminal = Terminal("evaluate.tournament", arguments(answers, battles), environment)
    try:
        yield terminal
    finally:
        terminal.close()


def answer_as_expert(screen: str) -> str:
    """Return the number of the answer that begins as those of the good model."""
    answers = re.findall(r"── answer [12] ──\r?\n(.)", screen)[-2:]
    assert sorted(answers) == ["坏", "好"]
    return str(answers.index("好") + 1)


@pytest.mark.slow
def test_person_stops_and_goes_on_blind(answer_files: list[Path], tmp_path: Path) -> None:
    """Names that tell whose answer it is; votes that are lost, or asked for again."""
    battles = tmp_path / "votes.jsonl"
    seen = []
    with open_terminal(answer_files, battles) as terminal:
        for _ in range(2):
            screen = terminal.wait_for(PROMPT)
            seen.append(screen)
            terminal.type("?\n")
            terminal.wait_for(PROMPT)
            terminal.type(f"{answer_as_expert(screen)}\n")
        terminal.at_prompt("q\n", PROMPT)
        assert "2 of 6 votes; run the same command again to go on" in terminal.wait_for_exit()
        assert terminal.process.exitcode == 0
    assert len(battles.read_text(encoding="utf-8").splitlines()) == 2
    with open_terminal(answer_files, battles) as terminal:
        for _ in range(3):
            screen = terminal.wait_for(PROMPT)
            seen.append(screen)
            terminal.type(f"{answer_as_expert(screen)}\n")
        screen = terminal.wait_for(PROMPT)
        terminal.type("0\n")
        assert "6 votes" in terminal.wait_for_exit()
    votes = [json.loads(line) for line in battles.read_text(encoding="utf-8").splitlines()]
    winners = [
        {"model_a": vote["model_a"], "model_b": vote["model_b"]}.get(vote["winner"])
        for vote in votes
    ]
    assert winners == ["good"] * 5 + [None]
    assert {vote["judge"] for vote in votes} == {"person"}
    assert len({(vote["question_id"], vote["model_a"]) for vote in votes}) == 6
    for screen in seen:
        shown = screen.partition("──── ")[2].replace("equally good", "")
        assert "answer 2" in shown and "good" not in shown and "poor" not in shown


@pytest.mark.slow
def test_end_of_input_stops(answer_files: list[Path], tmp_path: Path) -> None:
    """A traceback, or votes that are lost, where somebody presses Ctrl-D or a pipe ends."""
    battles = tmp_path / "votes.jsonl"
    with open_terminal(answer_files, battles) as terminal:
        terminal.at_prompt("1\n", PROMPT)
        terminal.at_prompt(CTRL_D, PROMPT)
        assert "1 of 6 votes" in terminal.wait_for_exit()
        assert terminal.process.exitcode == 0


@pytest.mark.slow
def test_votes_come_through_a_pipe_and_survive_ctrl_c(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Terminal commands in an answer; votes that Ctrl-C loses; bytes that are no text."""
    text = answer_files[0].read_text(encoding="utf-8").replace("好答案", "\\u001b[2J好")
    answer_files[0].write_text(text, encoding="utf-8")
    battles = tmp_path / "votes.jsonl"
    command = arguments(answer_files, battles)
    stdin = io.TextIOWrapper(io.BytesIO(b"1\n\xff\n\n 2 \n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    run_command(tournament, *command)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "\ufffd[2J好" in printed
    assert "2 of 6 votes" in printed and len(battles.read_text().splitlines()) == 2

    votes = iter(["1", "1"])

    def press(_: str) -> str:
        try:
            return next(votes)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("builtins.input", press)
    with pytest.raises(KeyboardInterrupt):
        run_command(tournament, *command)
    monkeypatch.setattr("builtins.input", lambda _: "q")
    run_command(tournament, *command)
    assert "4 of 6 votes" in capsys.readouterr().out
    assert len(battles.read_text().splitlines()) == 4


def test_person_who_stops_at_once_leaves_no_file(
    run_command: Run, answer_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without votes, which the next command cannot read."""
    battles = tmp_path / "votes.jsonl"
    monkeypatch.setattr("builtins.input", lambda _: "q")
    run_command(tournament, *arguments(answer_files, battles))
    assert not battles.exists()
