"""The command on documents of a file, and on the held-out text of a shard set."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UserError
from data.prepare.options import PrepareOptions
from evaluate.long_text import __main__ as long_text
from evaluate.long_text.measure import default_pasts
from model.checkpoint import weights
from model.tokenizer.base import Tokenizer
from tests.helpers.prepare import prepare_source
from tests.helpers.random_llama import random_llama

Run = Callable[..., None]


@pytest.fixture
def model_folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    model = random_llama(vocab_size=tokenizer.vocab_size, max_position_embeddings=128)
    folder = tmp_path / "model"
    folder.mkdir()
    weights.save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Documents of about 450 characters, and one that is too short."""
    path = tmp_path / "documents.jsonl"
    texts = [f"第{number}篇文章，" + f"说的是第{number}件事。" * 50 for number in range(12)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in [*texts, "太短"]]
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.mark.slow
def test_long_documents_of_files_are_measured(
    run_command: Run,
    model_folder: Path,
    documents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents windows of short documents, figures without intervals, and a page without curves."""
    out = tmp_path / "out.json"
    arguments = ["--checkpoint", model_folder, "--source", "jsonl", "--input", documents]
    arguments += ["--pasts", "16,32,160", "--targets", 8, "--windows", 15, "--device", "cpu"]
    run_command(long_text, *arguments, "--json", out, "--page", tmp_path / "page")
    figures = json.loads(out.read_text(encoding="utf-8"))
    assert figures["documents"] == 12 and figures["windows"] == 15
    assert list(figures["by_past"]) == ["16", "32", "160"]
    assert "gain" not in figures["by_past"]["16"]
    for past in figures["by_past"].values():
        assert past["loss"]["low"] < past["loss"]["mean"] < past["loss"]["high"]
        assert past["bits_per_character"] > 0
    assert list(figures["by_position"])[-1] == "128-167"
    printed = capsys.readouterr().out
    assert "warning: texts of up to 168 tokens, but the model was trained on 128" in printed
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "page-past.svg" in page and (tmp_path / "page-position.svg").is_file()

    with pytest.raises(UserError, match="no document has 4,008 tokens"):
        run_command(long_text, *arguments, "--pasts", "4000")


def test_files_without_a_document_are_refused_as_such(
    run_command: Run, model_folder: Path, tmp_path: Path
) -> None:
    """Prevents advice to give longer documents or shorter pasts where there is no document."""
    empty = tmp_path / "empty.txt"
    empty.touch()
    arguments = ["--checkpoint", model_folder, "--source", "text", "--input", empty]
    with pytest.raises(UserError, match=r"empty\.txt: no usable document"):
        run_command(long_text, *arguments, "--device", "cpu")


@pytest.mark.slow
def test_held_out_text_of_a_shard_set_is_measured(
    run_command: Run,
    model_folder: Path,
    documents: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prevents another split than the one named, and few documents without a word about it."""
    shards = tmp_path / "set"
    prepare_source("jsonl", [str(documents)], shards, model_folder, PrepareOptions())
    run_command(
        long_text, "--checkpoint", model_folder, "--data", shards, "--split", "train",
        "--device", "cpu", "--pasts", "16,64", "--targets", 8, "--windows", 5,
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "5 windows of 5 documents" in printed and "set train" in printed
    assert "only 5 documents are long enough" in printed


def test_default_pasts_fit_the_context() -> None:
    """Prevents a past that the model never saw unless it is asked for."""
    assert default_pasts(512, 64) == (64, 128, 256)
    assert default_pasts(640, 64) == (64, 128, 256, 512)
    assert default_pasts(64, 64) == (64,)
