"""Preferences are measured as conversations with the preferred answer."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from data.kinds.preferences import KIND
from data.sources import SOURCES
from evaluate import perplexity, repetition
from evaluate.kinds import find_evaluation
from evaluate.kinds.conversations import extract_questions
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

PAIRS: list[dict[str, Any]] = [
    {"prompt": "河在哪里？", "chosen": "在村子南边。", "rejected": "不知道不知道不知道。"},
    {
        "prompt": [
            {"role": "system", "content": "简短回答。"},
            {"role": "user", "content": "谁修的桥？"},
            {"role": "assistant", "content": "木匠。"},
            {"role": "user", "content": "多长？"},
        ],
        "passage": "桥长一百米。",
        "chosen": "一百米。",
        "rejected": "很长",
    },
]


@pytest.fixture
def files(tmp_path: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    """A random model, the pairs, and the first of them as a conversation."""
    paths = {name: tmp_path / name for name in ("model", "pairs", "first")}
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=256,
    )
    paths["model"].mkdir()
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, paths["model"])
    paths["pairs"].write_bytes(b"\n".join(map(orjson.dumps, PAIRS)))
    messages = [
        {"role": "user", "content": "河在哪里？"},
        {"role": "assistant", "content": "在村子南边。"},
    ]
    paths["first"].write_bytes(orjson.dumps({"messages": messages}))
    return paths


def test_loss_is_that_of_the_preferred_answers(
    files: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path, run_command: Callable[..., None]
) -> None:
    """Prevents a loss on rejected answers or on the context, which is no figure of anything."""
    out = tmp_path / "out.json"
    scores = []
    for source, name, limit in (
        ("preferences", "pairs", 1),
        ("openai", "first", 1),
        ("preferences", "pairs", 9),
    ):
        run_command(
            perplexity,
            *("--checkpoint", files["model"], "--source", source, "--input", files[name]),
            *("--limit", limit, "--device", "cpu", "--json", out),
        )
        scores.append(json.loads(out.read_text(encoding="utf-8")))
    assert scores[0]["loss"] == scores[1]["loss"]
    chosen = [len(tokenizer.encode(pair["chosen"])) + 1 for pair in PAIRS]
    assert [score["tokens"] for score in scores] == [chosen[0], chosen[0], sum(chosen)]


def test_questions_are_asked_after_their_context(
    files: dict[str, Path], tmp_path: Path, run_command: Callable[..., None]
) -> None:
    """Prevents questions of earlier turns, whose answers are not measured, and lost context."""
    predictions = tmp_path / "answers.jsonl"
    run_command(
        repetition,
        *("--checkpoint", files["model"], "--source", "preferences", "--input", files["pairs"]),
        *("--max_new_tokens", 4, "--device", "cpu", "--predictions", predictions),
    )
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert [row["input"] for row in rows] == ["河在哪里？", "多长？"]
    evaluation = find_evaluation(KIND)
    _, record = SOURCES["preferences"].iter_records(files["pairs"])
    assert isinstance(record, KIND.record_type)
    conversation = evaluation.as_conversation(record)
    assert conversation is not None
    (question,) = extract_questions(conversation)
    assert (question.history, question.passage) == ((("谁修的桥？", "木匠。"),), "桥长一百米。")
    assert (question.system, question.answer) == ("简短回答。", "一百米。")
    questions = evaluation.question_set("pairs", [record], "lower")
    assert questions is not None and questions.references == ["一百米。"]
