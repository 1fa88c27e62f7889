"""Pairs of a model's own answers, from records to the file that the source reads."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from common.errors import UserError
from data.corpora.detect import detect_source
from data.records import Preference, Turn
from data.sources import SOURCES
from evaluate.kinds.conversations import Question
from evaluate.preferences import __main__ as command
from evaluate.preferences import sample
from evaluate.preferences.options import PreferencesOptions
from model.chat_template.template import Template
from model.checkpoint import weights
from model.config import LlamaConfig
from model.llama import Llama
from model.tokenizer.base import Tokenizer

DIALOGUE = (
    "Human: 河在哪里？\n\nAssistant: 在村子南边。\n\nHuman: 第{}座桥多长？\n\nAssistant: 一百米。"
)


@pytest.fixture(scope="module")
def checkpoint(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose answers end after some tokens."""
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    model = Llama(config).init_weights(0)
    with torch.no_grad():
        model.lm_head.weight.mul_(10)
        # About every tenth token is <eos>.
        model.model.norm.weight[0] = 20
        model.lm_head.weight[:, 0] = 0
        model.lm_head.weight[config.eos_token_id, 0] = 0.3
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    folder.mkdir()
    weights.save_checkpoint(model, tokenizer, folder)
    Template().save(folder)
    return folder


@pytest.fixture
def dialogues(tmp_path: Path) -> Path:
    """Six dialogues about passages; the last passage does not fit the context."""
    path = tmp_path / "dialogues.jsonl"
    rows = [
        {
            "reference": f"第{number}座桥长一百米。" * (40 if number == 5 else 1),
            "dialogue": DIALOGUE.format(number),
        }
        for number in range(6)
    ]
    # The first one twice: its questions are asked once.
    path.write_bytes(b"\n".join(map(orjson.dumps, [*rows, rows[0]])))
    return path


@pytest.fixture
def make(
    checkpoint: Path, dialogues: Path, tmp_path: Path, run_command: Callable[..., None]
) -> Callable[..., list[dict[str, Any]]]:
    """Run the command; return the lines of its file."""

    def _make(*arguments: object) -> list[dict[str, Any]]:
        out = tmp_path / "pairs.jsonl"
        run_command(
            command,
            *("--checkpoint", checkpoint, "--source", "redgpt", "--input", dialogues),
            *("--out", out, "--measure", "length", "--max_new_tokens", 10, "--device", "cpu"),
            *arguments,
        )
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

    return _make


def test_pairs_are_read_back_as_they_were_written(
    make: Callable[..., list[dict[str, Any]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents pairs without their passage or earlier turns, and a file that DPO cannot read."""
    rows = make("--seed", 1)
    printed = capsys.readouterr().out
    assert f"{len(rows)} pairs of 12 questions" in printed
    assert "2 no room for an answer in the context" in printed
    assert len(rows) > 5 and not (tmp_path / "pairs.jsonl.partial").exists()
    assert all(row["score_chosen"] > row["score_rejected"] for row in rows)
    path = tmp_path / "pairs.jsonl"
    assert detect_source([path]) == "preferences"
    records = list(SOURCES["preferences"].iter_records(path))
    for row, record in zip(rows, records, strict=True):
        assert isinstance(record, Preference)
        assert (record.chosen.strip(), record.rejected.strip()) == (
            row["chosen"].strip(),
            row["rejected"].strip(),
        )
        assert record.reference.startswith("第") and record.rejected_is_cut == (
            "rejected_is_cut" in row
        )
    first, later = (
        [record for record in records if isinstance(record, Preference) and len(record.turns) == n]
        for n in (0, 1)
    )
    assert {record.question for record in first} == {"河在哪里？"}
    assert {record.turns for record in later} == {
        (Turn("河在哪里？", "在村子南边。", has_loss=False),)
    }
    assert {record.rejected_is_cut for record in first + later} == {False, True}


@pytest.mark.slow
def test_samples_depend_on_their_question_alone(make: Callable[..., list[dict[str, Any]]]) -> None:
    """Prevents pairs that change with the batch, or with the number of records."""
    rows = make()
    assert make("--batch", 5) == rows
    assert make("--limit", 3) == [row for row in rows if row["passage"][1] in "012"]
    assert make("--seed", 5) != rows
    references = make("--chosen", "reference", "--samples", 1)
    assert {row["chosen"] for row in references} == {"在村子南边。", "一百米。"}


@pytest.mark.slow
def test_interrupted_command_continues(
    make: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents hours of samples that an interruption loses, or samples that it changes."""
    rows = make("--batch", 1)
    original, calls = sample.sample_batch, []

    def count_and_interrupt(*arguments: Any, **options: Any) -> Any:
        calls.append(len(arguments[1]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(sample, "sample_batch", count_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        make("--batch", 1)
    assert (tmp_path / "pairs.jsonl.partial").exists()
    # Another preferred answer needs no other samples.
    make("--batch", 1, "--chosen", "reference", "--limit", 1)
    assert "were done before" in capsys.readouterr().out and len(calls) == 3
    calls.append(0)
    assert make("--batch", 1) == rows


def test_each_question_has_its_own_seeds() -> None:
    """Prevents the same draws for every question, which make the samples of a file alike."""
    options = PreferencesOptions(checkpoint=Path("x"), source="csl", input=("x",), out=Path("y"))
    seeds = [sample._seeds(options, Question((), text, "答", "")) for text in ("问", "另一问")]
    assert len({seed for group in seeds for seed in group}) == 2 * options.samples


def test_articles_are_asked_for_their_titles(
    make: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Prevents a request that differs from that of evaluation, or a pair without the article."""
    path = tmp_path / "csl.jsonl"
    article = "春天来了，村里的人都出门去看花。"
    path.write_bytes(orjson.dumps({"content": article, "summary": "看花"}))
    rows = make("--source", "csl", "--input", path, "--samples", 16)
    assert [row["prompt"] for row in rows] == [
        [{"role": "user", "content": f"请为下面的文章写一个标题：\n{article}"}]
    ]


def test_records_without_questions_are_refused(
    make: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Prevents an empty file of pairs, which training would refuse without the reason."""
    path = tmp_path / "text.jsonl"
    path.write_bytes(orjson.dumps({"text": "春天来了。"}))
    with pytest.raises(UserError, match="its documents have no questions"):
        make("--source", "jsonl", "--input", path)
    with pytest.raises(UserError, match=r"none of 2 questions gives a pair .*enough.*--measure"):
        make("--limit", 1, "--measure", "exact")
