"""Judging by an endpoint: both orders, resumed runs, dry runs, and replies without scores."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import UserError
from evaluate.tournament import __main__ as tournament
from evaluate.tournament import judge as judge_module
from evaluate.tournament.judge import estimate_tokens
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer
from tests.helpers.judge_server import Asked, JudgeServer, Response, judge_server
from tests.helpers.processes import CommandProcess
from tests.helpers.random_llama import random_llama
from tests.helpers.server import running_server

Run = Callable[..., None]
KEY = "sk-secret-0123456789"
QUESTIONS = ("一加一等于几？", "写一行代码。", "你好吗？")
NUM_VOTES = 6  # of two models on three questions in both orders


def prefer_good(asked: Asked) -> str:
    return "9 2\n好" if asked.answer_1.startswith("好") else "2 9\n好"


def arguments(server: JudgeServer, answers: list[Path], battles: Path) -> list[Any]:
    return [
        "judge",
        "--answers",
        *answers,
        "--battles",
        battles,
        "--endpoint",
        server.url,
        "--judge",
        "大模型",
    ]


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_both_orders_are_asked_and_the_better_model_wins(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers that are judged in one order only, or votes for the wrong model; a key on disk."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    battles, out = tmp_path / "votes.jsonl", tmp_path / "out.json"
    with judge_server(prefer_good) as server:
        run_command(tournament, *arguments(server, answer_files, battles))
        assert server.pairs == [
            pair
            for text in QUESTIONS
            for pair in (
                (text, f"好答案：{text}", f"坏：{text}"),
                (text, f"坏：{text}", f"好答案：{text}"),
            )
        ]
        assert {asked.headers["authorization"] for asked in server.asked} == {f"Bearer {KEY}"}
        body = server.asked[0].body
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("大模型", 0, 512)
    votes = read_lines(battles)
    assert [vote["question_id"] for vote in votes] == ["q1", "q1", "q2", "q2", 3, 3]
    assert [vote["winner"] for vote in votes] == ["model_a", "model_b"] * 3
    assert votes[1] == {
        "question_id": "q1",
        "category": "math",
        "model_a": "poor",
        "model_b": "good",
        "judge": "大模型",
        "winner": "model_b",
        "score_a": 2.0,
        "score_b": 9.0,
        "characters_a": 9,
        "characters_b": 11,
    }
    run_command(tournament, "rate", "--battles", battles, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert (figures["comparisons"], figures["both_orders"]) == (3, 3)
    assert [(model["model"], model["won"], model["lost"]) for model in figures["models"]] == [
        ("good", 3, 0),
        ("poor", 0, 3),
    ]
    assert figures["first_place"]["大模型"]["rate"] == 0.5
    assert figures["longer_answer"]["rate"] == 1
    printed = capsys.readouterr()
    files = "".join(path.read_text(encoding="utf-8") for path in tmp_path.iterdir())
    assert KEY not in printed.out + printed.err + files


@pytest.mark.slow
def test_judge_that_prefers_the_first_answer_decides_nothing(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A rating that is the judge's bias."""
    battles, out = tmp_path / "votes.jsonl", tmp_path / "out.json"
    with judge_server(lambda _: "8 6") as server:
        run_command(tournament, *arguments(server, answer_files, battles))
        assert "authorization" not in server.asked[0].headers
    run_command(tournament, "rate", "--battles", battles, "--json", out)
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["orders_disagree"] == figures["comparisons"] == 3
    for model in figures["models"]:
        assert (model["won"], model["tied"], model["lost"]) == (0, 3, 0)
        for kind in ("elo", "bradley_terry"):
            assert model[kind] == pytest.approx({"rating": 1000, "low": 1000, "high": 1000})
    bias = figures["first_place"]["大模型"]
    assert (bias["rate"], bias["questions"]) == (1, NUM_VOTES)
    printed = capsys.readouterr().out
    assert "first answer won 100.0 %" in printed and "the judge prefers it" in printed
    assert "not certain: that good is better than poor" in printed


@pytest.mark.slow
def test_killed_command_goes_on_without_asking_twice(
    answer_files: list[Path], tmp_path: Path
) -> None:
    """Replies that are paid for twice after a kill."""
    battles = tmp_path / "votes.jsonl"
    replies = tmp_path / "votes.jsonl.replies"

    def reply(asked: Asked) -> str | Response:
        if len(server.asked) == 4 and not is_killed:
            # Until the kill, no reply comes.
            return Response(503, headers=(("Retry-After", "60"),))
        return prefer_good(asked)

    is_killed = False
    with judge_server(reply) as server:
        command = [str(argument) for argument in arguments(server, answer_files, battles)]
        process = CommandProcess("evaluate.tournament", *command)
        process.send_signal_when(signal.SIGKILL, lambda: len(server.asked) == 4)
        assert process.wait().returncode == -signal.SIGKILL
        assert not battles.exists() and len(read_lines(replies)) == 3
        is_killed = True
        done = CommandProcess("evaluate.tournament", *command).wait()
        assert done.returncode == 0, done.stderr
        # The request that the kill interrupted is sent again, and no other one.
        assert len(server.asked) == NUM_VOTES + 1
        assert sorted(set(server.pairs)) == sorted([*server.pairs[:3], *server.pairs[4:]])
    assert len(read_lines(battles)) == NUM_VOTES


@pytest.mark.slow
def test_another_model_asks_for_its_own_pairs_only(
    run_command: Run,
    answer_files: list[Path],
    write_lines: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A whole tournament that is paid for again when one model joins."""
    battles = tmp_path / "votes.jsonl"
    rows = [{**row, "prediction": f"好新：{row['input']}"} for row in read_lines(answer_files[0])]
    newcomer = write_lines("new.jsonl", *rows)
    with judge_server(prefer_good) as server:
        run_command(tournament, *arguments(server, answer_files, battles))
        run_command(tournament, *arguments(server, answer_files, battles))
        assert len(server.asked) == NUM_VOTES
        run_command(tournament, *arguments(server, [*answer_files, newcomer], battles))
        assert len(server.asked) == 3 * NUM_VOTES == len(set(server.pairs))
    assert len(read_lines(battles)) == 3 * NUM_VOTES


@pytest.mark.slow
def test_dry_run_sends_and_writes_nothing(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Money spent by a command that was to show what it would cost."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    battles = tmp_path / "votes.jsonl"
    with judge_server(prefer_good) as server:
        command = arguments(server, answer_files, battles)
        run_command(tournament, *command, "--dry_run")
        assert server.asked == [] and sorted(tmp_path.iterdir()) == sorted(answer_files)
        printed = capsys.readouterr().out
        assert "【问题】\n一加一等于几？\n【问题结束】" in printed and KEY not in printed
        assert "6 requests (0 were answered before), about 1," in printed
        assert "at most 3,072 tokens" in printed and "nothing was sent" in printed
        run_command(tournament, *command, "--limit", 1)
        assert len(server.asked) == 2
        capsys.readouterr()
        run_command(tournament, *command, "--dry_run", "--max_tokens", "512")
        printed = capsys.readouterr().out
        assert "4 requests (2 were answered before)" in printed
        run_command(tournament, *command, "--dry_run", "--max_tokens", "null")
        assert "6 requests" in capsys.readouterr().out
        assert len(server.asked) == 2


@pytest.mark.slow
def test_replies_without_scores_are_counted_and_never_guessed(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A comparison that one order decides because the other has no scores; replies asked again."""

    def reply(asked: Asked) -> str | Response:
        if asked.question == QUESTIONS[0] and asked.answer_1.startswith("坏"):
            return "我觉得第二个好：2 比 9。"
        if asked.question == QUESTIONS[1]:
            return Response(400, b'{"error": {"message": "too long"}}')
        return prefer_good(asked)

    battles = tmp_path / "votes.jsonl"
    with judge_server(reply) as server:
        for _ in range(2):
            run_command(tournament, *arguments(server, answer_files, battles))
            printed = capsys.readouterr().out
            assert "no two scores on the first line: 1 replies" in printed
            assert "refused by the endpoint: 2 requests (status 400, too long)" in printed
            assert "so 2 of 3 comparisons are left out" in printed
            assert [vote["question_id"] for vote in read_lines(battles)] == [3, 3]
        # The second time only those that were refused.
        assert len(server.asked) == NUM_VOTES + 2


@pytest.mark.slow
def test_useless_judges_end_with_one_line(
    run_command: Run,
    answer_files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An empty file of votes, or hundreds of requests that are all refused."""
    battles = tmp_path / "votes.jsonl"
    with (
        judge_server(lambda _: "都好") as server,
        pytest.raises(UserError, match="no comparison has scores in both orders"),
    ):
        run_command(tournament, *arguments(server, answer_files, battles))
    monkeypatch.setattr(judge_module, "MAX_REFUSALS", 3)
    with judge_server(lambda _: Response(400, b'{"error": {"message": "max_tokens"}}')) as server:
        with pytest.raises(UserError, match="refuses every request: status 400, max_tokens"):
            run_command(tournament, *arguments(server, answer_files, battles))
        assert len(server.asked) == 3
        monkeypatch.setenv("OPENAI_API_KEY", "geheim\u00e4")
        with pytest.raises(UserError, match="OPENAI_API_KEY is no key") as caught:
            run_command(tournament, *arguments(server, answer_files, battles))
        assert "geheim" not in str(caught.value)
    assert not battles.exists()


@pytest.mark.slow
def test_votes_of_another_judge_are_not_overwritten(
    run_command: Run, answer_files: list[Path], write_lines: Callable[..., Path]
) -> None:
    """A person's evening lost to the next command."""
    vote = {"model_a": "x", "model_b": "y", "winner": "tie", "judge": "person"}
    battles = write_lines("votes.jsonl", vote)
    with judge_server(prefer_good) as server:
        with pytest.raises(UserError, match="has the votes of person; name another file"):
            run_command(tournament, *arguments(server, answer_files, battles))
        assert server.asked == [] and read_lines(battles) == [vote]


def test_files_without_common_questions_are_refused(
    run_command: Run, answer_files: list[Path], write_lines: Callable[..., Path], tmp_path: Path
) -> None:
    """A tournament of nothing."""
    other = write_lines("other.jsonl", {"question_id": "z", "input": "?", "prediction": "!"})
    server = JudgeServer("http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="no question has the answers of two models"):
        run_command(tournament, *arguments(server, [answer_files[0], other], tmp_path / "v.jsonl"))


def test_estimated_tokens_are_of_both_scripts() -> None:
    """A cost that is off by a factor."""
    assert estimate_tokens("") == 0
    assert estimate_tokens("你好，世界") == 5
    assert estimate_tokens("a" * 40) == 10
    assert estimate_tokens("你好 world") == 4


@pytest.mark.slow
def test_own_server_is_asked_like_any_other(
    run_command: Run,
    answer_files: list[Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Requests that a real server of the protocol refuses."""
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024)
    weights.save_checkpoint(model, tokenizer, checkpoint)
    Template().save(checkpoint)
    torch.manual_seed(0)
    battles = tmp_path / "votes.jsonl"
    with running_server(checkpoint, api_key=KEY) as server:
        command = arguments(JudgeServer(f"{server.url}v1"), answer_files, battles)
        command[-1] = server.model_name
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUDGE_KEY", "wrong")
            with pytest.raises(UserError, match="environment variable JUDGE_KEY"):
                run_command(tournament, *command, "--key_variable", "JUDGE_KEY")
            patch.setenv("JUDGE_KEY", KEY)
            # A model with random weights gives no scores.
            with pytest.raises(UserError, match="no comparison has scores in both orders"):
                run_command(tournament, *command, "--key_variable", "JUDGE_KEY", "--max_tokens", 5)
    printed = capsys.readouterr().out
    assert "no two scores on the first line: 6 replies" in printed and "refused" not in printed
