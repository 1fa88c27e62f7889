"""Multiple choice against a second implementation, and on a model that knows the answers."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluate.choice import __main__ as choice
from model.chat_template.template import Template
from model.checkpoint import weights
from model.llama import Llama
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama

Run = Callable[..., None]


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights."""
    folder = tmp_path_factory.mktemp("random")
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=4096)
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    return folder


@torch.inference_mode()
def _log_probability(model: Llama, prompt: list[int], option: list[int]) -> float:
    logits = model(torch.tensor([prompt + option]))[0].log_softmax(-1)
    return math.fsum(
        float(logits[len(prompt) + place - 1, target]) for place, target in enumerate(option)
    )


@pytest.mark.slow
def test_c3_equals_a_second_implementation(
    run_command: Run, checkpoint: Path, tokenizer: Tokenizer, shared: Path, tmp_path: Path
) -> None:
    """Prevents scores of another option, another passage or another length."""
    file, predictions = shared / "data/eval/c3-d-dev.json", tmp_path / "predictions.jsonl"
    run_command(
        choice, "--checkpoint", checkpoint, "--source", "c3", "--input", file, "--limit", 30,
        "--predictions", predictions,
    )  # fmt: skip
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    assert len(rows) == 30
    model, _ = weights.load_checkpoint(checkpoint, torch.device("cpu"))
    cue = [tokenizer.bos_id, *tokenizer.encode("答案：")]
    asked = [
        ("\n".join(lines), item)
        for lines, items, _ in json.loads(file.read_text())
        for item in items
    ]
    for row, (passage, item) in zip(rows, asked, strict=False):
        text = f"文章：{passage}\n问题：{item['question']}\n答案："
        prompt = [tokenizer.bos_id, *tokenizer.encode(text)]
        by_length, by_surprise = [], []
        for option in item["choice"]:
            (ids,) = tokenizer.encode_continuation([option])
            score = _log_probability(model, prompt, ids)
            by_length.append(score / len(option))
            by_surprise.append(score - _log_probability(model, cue, ids))
        assert row["answer"] == "ABCD"[item["choice"].index(item["answer"])]
        assert row["predicted"] == {
            "per character": "ABCD"[by_length.index(max(by_length))],
            "PMI": "ABCD"[by_surprise.index(max(by_surprise))],
        }


@pytest.mark.slow
def test_a_model_that_was_taught_the_answers_is_above_trivial_methods(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents right answers that count as wrong, and a verdict against the figures."""
    rows = [
        {
            "question": f"第{number}题是什么？",
            "options": ["云", "山", "河"],
            "answer": number * 7 % 5 % 3,
            "passage": f"文{number}",
        }
        for number in range(24)
    ]
    pairs = [
        (
            Template().encode_prompt(tokenizer, (), row["question"], row["passage"]),
            row["options"][row["answer"]],
        )
        for row in rows
    ]
    folder = teach(pairs, tmp_path / "taught")
    questions, figures = tmp_path / "q.jsonl", tmp_path / "figures.json"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = (
        choice, "--checkpoint", folder, "--source", "jsonl", "--input", questions,
        "--convention", "chat", "--json", figures,
    )  # fmt: skip
    run_command(*command)
    accuracy = json.loads(figures.read_text())["accuracy"]
    assert accuracy["per character"]["rate"] == accuracy["PMI"]["rate"] == 1
    assert accuracy["per character"]["above_trivial"] is True
    assert "per character: 100.0% is above the best trivial method" in capsys.readouterr().out
    # The wrong answers: below chance, and never above.
    for row in rows:
        row["answer"] = (row["answer"] + 1) % 3
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_command(*command)
    assert json.loads(figures.read_text())["accuracy"]["PMI"]["rate"] == 0
    assert "PMI: 0.0% is below the best trivial method" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", [None, 3])
def test_letters_with_solved_examples(
    seed: int | None, run_command: Run, checkpoint: Path, shared: Path, tmp_path: Path
) -> None:
    """Prevents examples of another subject or seed, and prompts that exceed the context."""
    figures = tmp_path / "figures.json"
    arguments = [] if seed is None else ["--shot_seed", seed]
    run_command(
        choice, "--checkpoint", checkpoint, "--source", "cmmlu", "--convention", "cmmlu",
        "--input", shared / "data/eval/cmmlu", "--limit", 2, "--shots", 2, "--json", figures,
        *arguments,
    )  # fmt: skip
    written = json.loads(figures.read_text())
    assert written["questions"] == 20
    assert set(written["accuracy"]) == {"letter"}
    assert sum(written["accuracy"]["letter"]["predicted_letters"].values()) == pytest.approx(1)
    assert {"STEM", "China specific"} <= set(written["accuracy"]["letter"]["categories"])


def test_without_a_checkpoint_the_trivial_methods_stand_alone(
    run_command: Run, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents a model being needed for figures that need none."""
    run_command(choice, "--source", "c3", "--input", shared / "data/eval/c3-d-dev.json")
    assert "most in common with the passage" in capsys.readouterr().out
