"""Replies on disk that survive a kill."""

from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.tournament.replies import Replies, hash_request, open_replies


def test_replies_survive_a_torn_line(tmp_path: Path) -> None:
    """A reply that is lost, or asked and paid for again, after a kill in the middle of a write."""
    path = tmp_path / "votes.jsonl.replies"
    with open_replies(path) as replies:
        replies.add("a", "7 5\n理由", judge="j")
        assert Replies(path).get("a") == "7 5\n理由"
    with path.open("ab") as file:
        file.write('{"key": "b", "reply": "半'.encode()[:-1])
    with open_replies(path) as replies:
        assert (replies.get("a"), replies.get("b")) == ("7 5\n理由", None)
        replies.add("c", "\ud800")
        replies.add("d", "6 6")
    replies = Replies(path)
    assert [replies.get(key) for key in "abcd"] == ["7 5\n理由", None, "?", "6 6"]
    with path.open("ab") as file:
        file.write(b'[1]\n{"key": 1, "reply": "x"}\n{"key": "e", "reply": null}\n\xff\n')
    assert Replies(path).get("e") is None and Replies(path).get("d") == "6 6"


def test_two_commands_do_not_share_replies(tmp_path: Path) -> None:
    """Everything asked twice by a command that is started again too early."""
    path = tmp_path / "votes.jsonl.replies"
    with (
        open_replies(path),
        pytest.raises(UserError, match="another command is judging"),
        open_replies(path),
    ):
        pass


def test_keys_depend_on_all_of_a_request() -> None:
    """A reply to another prompt, model or endpoint taken for this one."""
    values = [["u", {"a": 1, "b": 2}], ["v", {"a": 1, "b": 2}], ["u", {"a": 1, "b": 3}], ["\ud800"]]
    assert len({hash_request(value) for value in values}) == 4
    assert hash_request(["u", {"b": 2, "a": 1}]) == hash_request(values[0])
