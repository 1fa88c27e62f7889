"""Answers of a checkpoint to a file of questions."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from evaluate.tournament import __main__ as tournament
from evaluate.tournament import answer as answer_module
from model.chat_template.template import Template
from model.tokenizer.base import Tokenizer

ANSWERS = {"镇长是谁？": "白云飞", "多大了？": "三岁"}


@pytest.mark.slow
def test_answers_have_the_ids_of_their_questions(
    run_command: Callable[..., None],
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers to other questions, a long question that moves the rest, work lost to a kill."""
    prompts = [Template().encode_prompt(tokenizer, [], question) for question in ANSWERS]
    folder = teach(list(zip(prompts, ANSWERS.values(), strict=True)), tmp_path / "model")
    first, second = ANSWERS
    questions = write_lines(
        "q.jsonl",
        {"question_id": 7, "text": "Who?", "translation": first, "category": "generic"},
        {"question_id": 8, "text": "长" * 1000},
        {"question_id": "九", "question": second},
    )
    predictions = tmp_path / "small.jsonl"
    command = ["answer", "--checkpoint", folder, "--questions", questions]
    command += ["--predictions", predictions, "--device", "cpu", "--max_new_tokens", 20]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answer_module, "report_result", _interrupt)
        run_command(tournament, *command)
    capsys.readouterr()
    run_command(tournament, *command)
    printed = capsys.readouterr().out
    assert "3 of 3 were done before" in printed and "2 answers of" in printed
    assert "as the model small" in printed and "no room for an answer" in printed
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {
            "question_id": question_id,
            "category": category,
            "input": question,
            "prediction": ANSWERS[question],
            "tokens": len(tokenizer.encode(ANSWERS[question])),
            "stopped": True,
            "checkpoint": str(folder),
        }
        for question_id, category, question in ((7, "generic", first), ("九", "", second))
    ]
    assert not list(tmp_path.glob("*.partial"))
    run_command(tournament, *command, "--limit", 1)
    assert len(predictions.read_text(encoding="utf-8").splitlines()) == 1
    with pytest.raises(UserError, match="none fits the model's context"):
        run_command(tournament, *command, "--max_new_tokens", 255)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
