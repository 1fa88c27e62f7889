"""Fixtures: answer files of two models, and endpoints that are tried again at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WriteLines = Callable[..., Path]


@pytest.fixture
def write_lines(tmp_path: Path) -> WriteLines:
    """Return a function that writes JSON lines to a file of this name, and returns the path."""

    def _write(name: str, *rows: Any) -> Path:
        path = tmp_path / name
        path.write_text(
            "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )
        return path

    return _write


@pytest.fixture
def answer_files(write_lines: WriteLines) -> list[Path]:
    """Answers of the models `good` and `poor` to three questions of different categories."""
    questions = [
        ("q1", "math", "一加一等于几？"),
        ("q2", "coding", "写一行代码。"),
        (3, "", "你好吗？"),
    ]
    return [
        write_lines(
            f"{model}.jsonl",
            *(
                {
                    "question_id": question_id,
                    "category": category,
                    "input": text,
                    "prediction": f"{prefix}{text}",
                }
                for question_id, category, text in questions
            ),
        )
        for model, prefix in (("good", "好答案："), ("poor", "坏："))
    ]


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluate.tournament.endpoint.INITIAL_BACKOFF_SECONDS", 0.001)
