"""Exported items are conversations that training reads, without the families held out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.records import Conversation
from data.sources import SOURCES
from evaluate.rules import __main__ as rules
from evaluate.rules.export import read_trained_families
from evaluate.rules.families import FAMILIES
from evaluate.rules.generate import draw_items

Run = Callable[..., None]


def test_training_reads_the_export(
    run_command: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines that no source reads, answers of the other rule, and held-out families in the file."""
    path = tmp_path / "train.jsonl"
    run_command(rules, "--export", path, "--count", 4, "--seed", 3, "--hold_out", "cipher,order")
    held_in = [family for family in FAMILIES if family not in ("cipher", "order")]
    assert detect_source([path]) == "redgpt"
    records = list(SOURCES["redgpt"].iter_records(path))
    items = [item for family in held_in for item in draw_items(family, 4, 1, 3, "train")]
    assert len(records) == 2 * len(items)
    for index, record in enumerate(records):
        item, form = items[index // 2], ("with", "against")[index % 2]
        assert isinstance(record, Conversation)
        assert record.reference == item.passage(form)
        (turn,) = record.turns
        assert (turn.question, turn.answer) == (item.question, item.answer(form))
    assert read_trained_families(path) == held_in
    printed = capsys.readouterr().out
    assert f"48 conversations of {', '.join(held_in)}" in printed
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row["category"] in held_in
        assert SOURCES["redgpt"].check_fields is not None
        assert SOURCES["redgpt"].check_fields(row) == set()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "has no lines"),
        ('{"reference": "a", "dialogue": "b"}\n', "has no line with the task evaluate.rules"),
        ('{"reference": "a"}\n', "line 1: has no string 'dialogue'"),
        ("[3]\n", "line 1: has no string 'reference'"),
        (
            '{"reference": "a", "dialogue": "b", "task": "evaluate.rules", "category": ["x"]}\n',
            r"the family \['x'\] is none of this version",
        ),
    ],
)
def test_other_files_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    """A report that calls all families held out, because the file was another one."""
    path = tmp_path / "other.jsonl"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_trained_families(path)
