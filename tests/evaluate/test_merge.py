"""`python -m evaluate.merge` on a run of QLoRA: the trained loss, and those of both merges."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from data.prepare.options import PrepareOptions
from data.prepare.pipeline import prepare_groups
from data.prepare.source_args import SourceGroup
from evaluate.measures import merge
from evaluate.measures.merge import compare_merges
from evaluate.options import MergeOptions
from model.checkpoint import weights
from model.config import LlamaConfig
from model.interop.hf_export import export_hf
from model.llama import Llama
from model.lora_options import Merge
from model.tokenizer.base import Tokenizer
from tests.fault_injection.child import run_in_test_process
from tests.helpers.training import to_arguments

# The weights are large enough to lose by 4 bits.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A run of a few steps, beside a random base."""
    folder = tmp_path_factory.mktemp("merge")
    sample = root / "assets" / "sample" / "summary" / "csl"
    source = SourceGroup("csl", (str(sample / "train.tsv"),), (str(sample / "dev.tsv"),))
    options = PrepareOptions(workers=1, limit=20)
    prepare_groups([source], folder / "csl", root / "assets/tokenizer", options)
    (folder / "base").mkdir()
    config = LlamaConfig(tokenizer.vocab_size, **SHAPE)
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, folder / "base")
    arguments: dict[str, Any] = {
        "run": folder / "run",
        "base": folder / "base",
        "data": folder / "csl",
        "device": "cpu",
        "precision": "fp32",
        "sequence_length": 128,
        "batch_tokens": 256,
        "max_steps": 6,
        "adapter": "lora",
        "quantize": "nf4",
        "optimizer.lr": 0.02,
        "evaluation.examples": 0,
    }
    run_in_test_process("train.sft", to_arguments(arguments))
    return folder / "run"


@pytest.mark.slow
def test_table_has_the_losses_of_training_and_of_both_merges(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catch rows of other records or lengths, merges that are swapped, and a missing rounding."""
    results = {}
    for dtype in ("float32", "bfloat16"):
        file = tmp_path / f"{dtype}.json"
        compare_merges(MergeOptions(checkpoint=run, dtype=dtype, json=file, device="cpu"))
        results[dtype] = json.loads(file.read_text())["weights"]
    rows, rounded = results["float32"], results["bfloat16"]
    # The loss that training logged for its last step.
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (validation,) = (record for record in metrics if record["kind"] == "validation")
    trained = rows["adapter beside nf4"]["loss"]
    assert trained == pytest.approx(validation["loss"], rel=1e-5)
    assert rows["merged into dequantized"]["loss"] == pytest.approx(trained, rel=1e-5)
    assert abs(rows["merged into original"]["difference"]) > 1e-4
    assert abs(rows["base in nf4"]["loss"] - rows["base"]["loss"]) > 1e-4
    assert trained < rows["base in nf4"]["loss"]
    difference = rounded["merged into dequantized"]["loss"] - trained
    assert 0 < abs(difference) < 0.05
    printed = capsys.readouterr().out
    assert f"adapter beside nf4{trained:15.4f}" in printed and "rounded to bfloat16" in printed


@pytest.mark.slow
def test_models_are_in_memory_one_at_a_time(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catch a model that is kept while the next one is loaded, which is twice the memory."""
    loaded: list[weakref.ref[Llama]] = []
    make_loaders = merge._loaders

    def watch(load: Callable[[], Llama]) -> Callable[[], Llama]:
        def watched() -> Llama:
            assert all(model() is None for model in loaded)
            model = load()
            loaded.append(weakref.ref(model))
            return model

        return watched

    monkeypatch.setattr(
        merge,
        "_loaders",
        lambda *arguments: {name: watch(load) for name, load in make_loaders(*arguments).items()},
    )
    compare_merges(MergeOptions(checkpoint=run, device="cpu", limit=2))
    assert len(loaded) == 5


@pytest.mark.slow
def test_card_says_which_merge_has_its_scores(run: Path, tmp_path: Path) -> None:
    """Catch scores of the dequantized merge in the card of an export of the other."""
    for name, merged_into in (
        ("dequantized", "these, dequantized"),
        ("original", "the base's own"),
    ):
        export_hf(run, tmp_path / name, merge=cast(Merge, name))
        card = (tmp_path / name / "README.md").read_text(encoding="utf-8")
        assert f"| trained beside | nf4 weights; merged into {merged_into} |" in card
        assert "validation loss |" in card
        assert ("not with the weights of this export" in card) == (name == "original")


def test_rounding_is_that_of_an_export(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Catch positions that are rounded with the weights: an export holds no rotary table."""
    config = LlamaConfig(tokenizer.vocab_size, **SHAPE)
    weights.save_checkpoint(Llama(config).init_weights(0), tokenizer, tmp_path)
    export_hf(tmp_path, tmp_path / "export", dtype="bfloat16")
    cpu = torch.device("cpu")
    exported, _ = weights.load_checkpoint(tmp_path / "export", cpu)
    rounded = merge._round_weights(weights.load_checkpoint(tmp_path, cpu)[0], torch.bfloat16)
    ids = torch.arange(300, 400)[None]
    assert torch.equal(rounded(ids), exported(ids))
