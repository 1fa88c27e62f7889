"""Files of votes: forms, faults, and the two orders of a comparison."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evaluate.tournament import battles as battles_module
from evaluate.tournament.battles import Battle, combine_votes, read_battles

WriteLines = Callable[..., Path]
VOTE = {"question_id": 1, "model_a": "甲", "model_b": "乙", "winner": "model_a"}


def test_native_form_has_winner_of_higher_score(tmp_path: Path) -> None:
    """Ties and losses of the native form counted as wins."""
    scores = [(9.0, 7), (5, 8.5), (6, 6.0)]
    battles = [{"model_a": "x", "model_b": "y", "score_a": a, "score_b": b} for a, b in scores]
    for name, text in {
        "native.json": json.dumps({"battles": battles}, indent=0),
        "flat.json": json.dumps({"battles": battles}),
        "list.json": json.dumps(battles),
        "lines.jsonl": "\ufeff" + "\r\n".join(map(json.dumps, battles)),
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        read = read_battles([tmp_path / name])
        assert [battle.winner for battle in read] == ["model_a", "model_b", "tie"], name
        assert {battle.judge for battle in read} == {Path(name).stem}


def test_native_excerpt_is_read_whole(shared: Path) -> None:
    """Battles of the real record that are lost."""
    path = shared / "data/eval/battles_excerpt.json"
    assert len(read_battles([path])) == path.read_text(encoding="utf-8").count('"model_a"')


def test_win_needs_both_orders_to_agree() -> None:
    """A judge that always prefers one place deciding comparisons."""

    def verdict(*votes: tuple[str, str, str]) -> tuple[str | None, bool]:
        battles = [Battle(a, b, winner, "judge", question_id=1) for a, b, winner in votes]
        (comparison,) = combine_votes(battles)
        return comparison.winning_model, comparison.orders_disagree

    assert verdict(("x", "y", "model_a"), ("y", "x", "model_b")) == ("x", False)
    assert verdict(("x", "y", "model_a"), ("y", "x", "model_a")) == (None, True)
    assert verdict(("x", "y", "model_a"), ("y", "x", "tie")) == (None, True)
    assert verdict(("x", "y", "tie"), ("y", "x", "tie")) == (None, False)
    assert verdict(("x", "y", "model_b")) == ("y", False)


def test_comparisons_are_of_one_judge_question_and_pair() -> None:
    """Votes that are mixed; battles without questions that are taken for one comparison."""
    battles = [
        Battle("x", "y", "model_a", "j", 1),
        Battle("x", "z", "model_a", "j", 1),
        Battle("x", "y", "model_b", "j", 2),
        Battle("x", "y", "model_b", "k", 1),
        Battle("y", "x", "model_b", "j", "1"),
    ]
    groups = [comparison.votes for comparison in combine_votes(battles)]
    assert groups == [(battles[0], battles[4]), *((battle,) for battle in battles[1:4])]
    unnamed = [Battle("x", "y", "model_a", "j"), Battle("y", "x", "model_a", "j")]
    assert len(combine_votes(unnamed)) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**VOTE, "winner": "model_c"}, "line 1: the winner is 'model_c'; it has to be model_a"),
        ({**VOTE, "winner": ["model_a"]}, "line 1: the winner is"),
        ({**VOTE, "model_b": "甲"}, "line 1: 甲 is compared with itself; a battle has two models"),
        ({**VOTE, "model_b": "a\x1b[2J"}, "line 1: model_b is 'a\\x1b[2J'; it has to be a name"),
        ({**VOTE, "model_b": " "}, "line 1: model_b is ' '"),
        ({**VOTE, "model_b": "x" * 300}, "line 1: model_b is longer than 200 characters"),
        ({**VOTE, "model_a": 3}, "line 1: model_a is 3; it has to be a name"),
        ({**VOTE, "judge": None}, "line 1: judge is None"),
        ({**VOTE, "question_id": 1.5}, "line 1: question_id is 1.5"),
        ({**VOTE, "question_id": True}, "line 1: question_id is True"),
        ({"model_a": "x", "winner": "tie"}, "line 1: has no 'model_b'; a line is {"),
        ({"model_a": "x", "model_b": "y"}, "line 1: has no 'score_a'; a line is {"),
        (
            {"model_a": "x", "model_b": "y", "score_a": float("nan"), "score_b": 1},
            "line 1: score_a is None",
        ),
        (
            {"model_a": "x", "model_b": "y", "score_a": float("inf"), "score_b": 1},
            "line 1: score_a is inf",
        ),
        ({"model_a": "x", "model_b": "y", "score_a": 2, "score_b": "7"}, "score_b is '7'"),
        ({"model_a": "x", "model_b": "y", "score_a": True, "score_b": 7}, "score_a is True"),
        ({"battles": [VOTE, 3]}, "battle 2: is no JSON object"),
        ({"battles": []}, "there are no battles; a line is"),
        ([VOTE, 3], "expected a JSON object, not int"),
        ("x", "expected a JSON object, not str"),
    ],
)
def test_faulty_votes_are_named(write_lines: WriteLines, row: Any, message: str) -> None:
    """A traceback, a vote that is guessed, or terminal commands in a message."""
    with pytest.raises(UserError) as caught:
        read_battles([write_lines("votes.jsonl", row)])
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "there are no battles"),
        (b"\n \n", "there are no battles"),
        (b"{", "line 1: not valid JSON"),
        (b'{"model_a": "\\ud800"}', "line 1: not valid JSON"),
        ('{"model_a": "中文"}'.encode("gb18030"), "not UTF-8 but GBK"),
        (b'{"score_a": ' + b"9" * 5000 + b"}", "has no 'model_a'"),
        (b"[" * 100_000, "line 1"),
        (b"\x1f\x8b", "damaged"),
    ],
)
def test_faulty_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A traceback for a file that is something else."""
    path = tmp_path / "votes.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_battles([path])
    assert message in str(caught.value) and len(str(caught.value)) < 1000


def test_votes_that_repeat_are_refused(write_lines: WriteLines) -> None:
    """A file that is given twice, or written twice, counting double."""
    path = write_lines(
        "votes.jsonl", VOTE, {**VOTE, "judge": "另一个"}, {**VOTE, "question_id": "1"}
    )
    with pytest.raises(UserError, match=r"line 3: the same judge, question and order as .* line 1"):
        read_battles([path])
    other = write_lines("other.jsonl", {**VOTE, "judge": "votes"})
    single = write_lines("votes.jsonl", VOTE)
    with pytest.raises(UserError, match=r"other.jsonl line 1: the same .*votes.jsonl line 1"):
        read_battles([single, other])


def test_questions_are_named_by_all_votes_or_none(write_lines: WriteLines) -> None:
    """Some comparisons in both orders beside others that are counted twice."""
    path = write_lines("v.jsonl", VOTE, {key: VOTE[key] for key in VOTE if key != "question_id"})
    with pytest.raises(UserError, match="line 2: has no question_id"):
        read_battles([path])


def test_sizes_are_bounded(write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours, or all memory, for a file that nobody meant to rate."""
    rows = [{**VOTE, "question_id": n, "model_b": f"m{n}"} for n in range(8)]
    path = write_lines("v.jsonl", *rows)
    monkeypatch.setattr(battles_module, "MAX_MODELS", 5)
    with pytest.raises(UserError, match="there are 9 models; 5 can be rated"):
        read_battles([path])
    monkeypatch.setattr(battles_module, "MAX_BATTLES", 4)
    with pytest.raises(UserError, match="line 5: there are more than 4 battles"):
        read_battles([path])
    with pytest.raises(UserError, match="is not a file"):
        read_battles([path.parent])
