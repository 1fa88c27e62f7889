"""Answers of a checkpoint to a file of questions."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from evaluate.tournament import __main__ as tournament
from evaluate.tournament import answer as answer_module
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import greedy_without_cache, random_llama

MAX_NEW_TOKENS = 20
FIRST, SECOND = "镇长是谁？", "多大了？"


@pytest.mark.slow
def test_answers_have_the_ids_of_their_questions(
    run_command: Callable[..., None],
    tokenizer: Tokenizer,
    write_lines: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Answers to other questions, a long question that moves the rest, work lost to a kill."""
    folder = tmp_path / "model"
    folder.mkdir()
    model = random_llama(vocab_size=tokenizer.vocab_size)
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    questions = write_lines(
        "q.jsonl",
        {"question_id": 7, "text": "Who?", "translation": FIRST, "category": "generic"},
        {"question_id": 8, "text": "长" * 1000},
        {"question_id": "九", "question": SECOND},
    )
    predictions = tmp_path / "small.jsonl"
    command = ["answer", "--checkpoint", folder, "--questions", questions]
    command += ["--predictions", predictions, "--device", "cpu", "--max_new_tokens", MAX_NEW_TOKENS]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(answer_module, "report_result", _interrupt)
        run_command(tournament, *command)
    capsys.readouterr()
    run_command(tournament, *command)
    printed = capsys.readouterr().out
    assert "3 of 3 were done before" in printed and "2 answers of" in printed
    assert "as the model small" in printed and "no room for an answer" in printed
    expected_rows: list[dict[str, Any]] = []
    for question_id, category, question in ((7, "generic", FIRST), ("九", "", SECOND)):
        prompt = Template().encode_prompt(tokenizer, [], question)
        ids = greedy_without_cache(model, prompt, MAX_NEW_TOKENS)
        expected_rows.append(
            {
                "question_id": question_id,
                "category": category,
                "input": question,
                "prediction": tokenizer.decode(ids),
                "tokens": len(ids),
                "stopped": len(ids) < MAX_NEW_TOKENS,
                "checkpoint": str(folder),
            }
        )
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert rows == expected_rows
    assert not list(tmp_path.glob("*.partial"))
    run_command(tournament, *command, "--limit", 1)
    assert len(predictions.read_text(encoding="utf-8").splitlines()) == 1
    command[command.index(questions)] = write_lines("long.jsonl", {"text": "长" * 1000})
    with pytest.raises(UserError, match="none fits the model's context"):
        run_command(tournament, *command)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
