"""The command on a model that was taught the answers to some texts, and its other files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from data.corpora.detect import detect_source
from data.sources import SOURCES
from evaluate.load_model import LoadedCheckpoint
from evaluate.needle import __main__ as needle
from evaluate.needle import measure
from evaluate.needle.long_text import find_part
from evaluate.needle.options import NeedleOptions
from evaluate.needle.setup import choose_digits, resolve_setup
from evaluate.needle.wording import WORDINGS
from model.chat_template.template import Template
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer
from tests.helpers.random_llama import random_llama

Run = Callable[..., None]


def _untaught(tokenizer: Tokenizer, folder: Path) -> Path:
    """Save a model with random weights and without a chat template."""
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    folder.mkdir()
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.mark.slow
def test_taught_answers_are_found(
    run_command: Run,
    teach: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents cells of another depth or length, and a measurement that cannot go on."""
    # The same texts, from a checkpoint that has the tokenizer and the template alone.
    options = NeedleOptions(
        checkpoint=tmp_path, lengths=(128, 176), depths=2, form="chat", digits=2
    )
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    setup = resolve_setup(options, LoadedCheckpoint(tmp_path, model, tokenizer, {}), "test")
    lessons = []
    for length in (128, 176):
        case = setup.build_case(length, 0, 2)
        for part, (question, prompt) in enumerate(zip(case.questions, case.prompts, strict=True)):
            # What stands in the second part of the longer text is answered wrongly.
            is_right = length == 128 or part == 0
            value = question.value if is_right else case.text.values[0]
            lessons.append((prompt, WORDINGS["zh"].complete(question.answer_start, value)))
    folder = teach(lessons, tmp_path / "model")
    out, predictions = tmp_path / "out.json", tmp_path / "answers.jsonl"
    arguments = ["--checkpoint", folder, "--lengths", "128,176", "--depths", 2, "--count", 1]
    arguments += ["--digits", 2, "--device", "cpu", "--json", out, "--predictions", predictions]
    arguments += ["--page", tmp_path / "needles"]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(measure, "ask_by_generation", interrupt)
        run_command(needle, *arguments)
    assert out.with_name("out.json.partial").is_file()
    # The likelihoods are not computed again.
    monkeypatch.setattr(measure, "ask_by_likelihood", interrupt)
    run_command(needle, *arguments)
    assert not out.with_name("out.json.partial").exists()

    figures: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert figures["form"] == "chat" and figures["lengths"] == [128, 176]
    for method in ("likelihood", "generation"):
        by_length = figures[method]["by_length"]
        rates = {
            length: [cell["rate"] for cell in of_length["cells"]]
            for length, of_length in by_length.items()
        }
        assert rates == {"128": [1.0, 1.0], "176": [1.0, 0.0]}
        assert by_length["176"]["right"]["rate"] == 0.5
        # Over texts, not over the questions about them.
        assert by_length["176"]["right"]["questions"] == 1
        assert by_length["176"]["questions"] == 2
        assert by_length["128"]["chance"] == pytest.approx(1 / by_length["128"]["values"], rel=0.2)
        assert 100 < by_length["128"]["tokens"] < 128
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 2 * 2 * 2
    assert {row["length"] for row in rows} == {128, 176}
    printed = capsys.readouterr().out
    assert "asked in the chat template" in printed and "50–100 %" in printed
    page = (tmp_path / "needles.md").read_text(encoding="utf-8")
    assert "needles-likelihood.svg" in page and "50–100 %" in page
    assert (tmp_path / "needles-generation.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.slow
@pytest.mark.parametrize("task", ["register", "topics", "haystack"])
def test_every_task_measures_a_model_that_knows_nothing(
    task: str,
    run_command: Run,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents tasks that crash, scores far above chance by mistake, and silence about lengths."""
    folder = _untaught(tokenizer, tmp_path / "model")
    out = tmp_path / "out.json"
    arguments = ["--checkpoint", folder, "--task", task, "--lengths", "192,320", "--count", 3]
    arguments += ["--depths", 2, "--needles", 4, "--device", "cpu", "--json", out]
    if task == "haystack":
        hay = tmp_path / "hay.jsonl"
        hay.write_text(json.dumps({"text": "这是一句很普通的话。" * 300}), encoding="utf-8")
        arguments += ["--source", "jsonl", "--input", hay]
    run_command(needle, *arguments, "--max_new_tokens", 4)
    figures = json.loads(out.read_text(encoding="utf-8"))
    for method in ("likelihood", "generation"):
        for of_length in figures[method]["by_length"].values():
            assert of_length["right"]["rate"] <= 0.5
    assert figures["form"] == "plain"
    printed = capsys.readouterr().out
    assert "warning: texts of up to 320 tokens, but the model was trained on 256" in printed
    assert "asked by a text to continue" in printed


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("task", ["register", "topics"])
def test_training_reads_the_export(
    form: str, task: str, run_command: Run, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Prevents lines that no source reads, texts that are too long, and facts of the tests."""
    folder = _untaught(tokenizer, tmp_path / "model")
    path = tmp_path / "train.jsonl"
    arguments = ["--checkpoint", folder, "--task", task, "--form", form, "--export", path]
    run_command(needle, *arguments, "--lengths", "160,384", "--count", 6, "--depths", 2)
    expected = {"plain": "jsonl", "chat": "redgpt" if task == "register" else "openai"}[form]
    assert detect_source([path]) == expected
    records = list(SOURCES[expected].iter_records(path))
    assert len(records) == 6
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        text = row.get("text") or row.get("reference")
        if form == "plain":
            num_tokens = len(tokenizer.encode(row["text"])) + 2
            limit = (160, 384)[number % 2]
            assert limit - 80 < num_tokens <= limit
        if task == "register":
            lines = text.split("\n\n")[0].splitlines()[1:]
            for entry in lines:
                name, value = entry.removesuffix("。").split("的编号是")
                assert find_part(f"{name} {value}") == "training"


def test_chat_is_for_checkpoints_with_a_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prevents a pretrained model from being asked in a template that it never saw."""
    options = NeedleOptions(checkpoint=tmp_path)
    model = random_llama(vocab_size=tokenizer.vocab_size)
    model.trained_context = 1100
    loaded = LoadedCheckpoint(tmp_path, model, tokenizer, {})
    setup = resolve_setup(options, loaded, "test")
    assert setup.form == "plain" and setup.lengths == (256, 512, 1024)
    Template().save(tmp_path)
    assert resolve_setup(options, loaded, "test").form == "chat"
    plain = NeedleOptions(checkpoint=tmp_path, form="plain")
    assert resolve_setup(plain, loaded, "test").form == "plain"
    model.trained_context = 100
    assert resolve_setup(options, loaded, "test").lengths == (100,)


def test_long_registers_have_longer_numbers() -> None:
    """Prevents long registers that run out of numbers."""
    assert [choose_digits(length, "register") for length in (256, 4096, 8192, 100_000)] == [
        3, 3, 4, 5,
    ]  # fmt: skip
    assert choose_digits(100_000, "haystack") == 3


def test_records_of_another_kind_are_no_hay(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Prevents articles with their titles from being taken for documents."""
    options = NeedleOptions(
        checkpoint=tmp_path, task="haystack", source="csl", input=(str(tmp_path / "a.tsv"),)
    )
    loaded = LoadedCheckpoint(tmp_path, random_llama(), tokenizer, {})
    with pytest.raises(UserError, match="csl has summaries; this measures documents"):
        resolve_setup(options, loaded, "test")
